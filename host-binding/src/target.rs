//! Where a bucket's keys live, as a person writes it: a directory or the URL of a service.

use serde::Deserialize;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use url::Url;

/// A kind of service that the crate has a feature for, and what a URL of it may say: a slip of the pen is found where the
/// URL is written, not by the first call.
struct Kind {
    scheme: &'static str,
    /// How such a URL is written.
    shape: &'static str,
    /// Whether it must name a host, which for some services is a table or an account.
    host: bool,
    /// Parts of its path.
    parts: RangeInclusive<usize>,
    parameters: &'static [&'static str],
}

/// Parameters of a service with several nodes, reached in the clear and by TLS.
const PLAIN: &[&str] = &["node", "prefix"];
const TLS: &[&str] = &["node", "prefix", "ca", "cert", "key"];
/// The same of Redis.
const REDIS: &[&str] = &["node", "prefix", "protocol"];
const REDIS_TLS: &[&str] = &["node", "prefix", "protocol", "ca", "cert", "key"];
/// Those that name a file.
const FILES: &[&str] = &["ca", "cert", "key"];

const fn kind(scheme: &'static str, shape: &'static str, parts: RangeInclusive<usize>) -> Kind {
    Kind { scheme, shape, host: false, parts, parameters: PLAIN }
}

static KINDS: [Kind; 10] = [
    Kind { parameters: REDIS, ..kind("redis", "redis://HOST[:PORT][/NUMBER]", 0..=1) },
    Kind { parameters: REDIS_TLS, ..kind("rediss", "rediss://HOST[:PORT][/NUMBER]", 0..=1) },
    Kind { parameters: REDIS, ..kind("redis-cluster", "redis-cluster://HOST[:PORT]", 0..=0) },
    Kind { parameters: REDIS_TLS, ..kind("rediss-cluster", "rediss-cluster://HOST[:PORT]", 0..=0) },
    Kind { parameters: &["prefix"], ..kind("memcached", "memcached://HOST[:PORT]", 0..=0) },
    kind("etcd", "etcd://HOST[:PORT]", 0..=0),
    Kind { parameters: TLS, ..kind("etcds", "etcds://HOST[:PORT]", 0..=0) },
    Kind {
        host: true,
        parameters: &["region", "endpoint", "prefix", "create"],
        ..kind("dynamodb", "dynamodb://TABLE", 0..=0)
    },
    Kind {
        host: true,
        parameters: &["endpoint", "prefix", "create"],
        ..kind("cosmos", "cosmos://ACCOUNT/DATABASE/CONTAINER", 2..=2)
    },
    Kind {
        host: true,
        parameters: &["endpoint", "prefix"],
        ..kind("firestore", "firestore://PROJECT[/DATABASE]", 0..=1)
    },
];

impl Kind {
    /// What in `url` none of this kind would say. The text may hold a password: nothing of it but names of parameters is repeated.
    fn check(&self, url: &Url) -> Result<(), String> {
        let parts = url.path().split('/').filter(|part| !part.is_empty()).count();
        if (self.host && url.host_str().is_none_or(str::is_empty)) || !self.parts.contains(&parts) {
            return Err(format!("a URL of this kind is written {}", self.shape));
        }
        for (name, value) in url.query_pairs() {
            if !self.parameters.contains(&&*name) {
                let known = self.parameters.join(", ");
                return Err(format!("{}:// has no parameter {name:?}: there is {known}", self.scheme));
            }
            let right = match &*name {
                "create" => matches!(&*value, "true" | "false"),
                "endpoint" => Url::parse(&value).is_ok_and(|url| matches!(url.scheme(), "http" | "https")),
                "region" | "node" | "ca" | "cert" | "key" => !value.is_empty(),
                _ => true,
            };
            if !right {
                let expected = match &*name {
                    "create" => "true or false",
                    "endpoint" => "a URL of http:// or https://",
                    _ => "not empty",
                };
                return Err(format!("{}://: {name} is {expected}", self.scheme));
            }
        }
        let says = |name: &str| url.query_pairs().any(|(found, _)| found == name);
        if says("cert") != says("key") {
            return Err(format!("{}://: cert and key name one certificate of our own: both, or neither", self.scheme));
        }
        Ok(())
    }
}

/// A place for keys: `DIR`, `engine:DIR`, or a URL such as `redis://host:6379`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Target {
    /// A store of the kvasi engine in a directory.
    Directory(PathBuf),
    /// A service of one of the kinds that kvasi knows, whether or not this build has it.
    Service(Url),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(dir) = text.strip_prefix("engine:") {
            return Ok(Target::Directory(dir.strip_prefix("//").unwrap_or(dir).into()));
        }
        let Some((scheme, _)) = text.split_once("://") else { return Ok(Target::Directory(text.into())) };
        let Some(kind) = KINDS.iter().find(|kind| kind.scheme == scheme) else {
            return Err(format!(
                "{scheme}:// is no kind of store: a directory is, or engine:DIR, or a URL of {}",
                KINDS.iter().map(|kind| kind.scheme).collect::<Vec<_>>().join(", ")
            ));
        };
        // The text itself may hold a password: it is not repeated.
        let url = Url::parse(text).map_err(|error| format!("this is not a {scheme} URL: {error}"))?;
        kind.check(&url)?;
        Ok(Target::Service(url))
    }
}

impl Target {
    /// The same, with directories and files relative to `base`.
    pub fn relative_to(&self, base: &Path) -> Target {
        match self {
            Target::Directory(dir) => Target::Directory(base.join(dir)),
            Target::Service(url) if url.query_pairs().any(|(name, _)| FILES.contains(&&*name)) => {
                let mut placed = url.clone();
                placed.query_pairs_mut().clear().extend_pairs(url.query_pairs().map(|(name, value)| {
                    let file = || base.join(&*value).to_string_lossy().into_owned();
                    let value = if FILES.contains(&&*name) { file() } else { value.clone().into_owned() };
                    (name, value)
                }));
                Target::Service(placed)
            }
            Target::Service(url) => Target::Service(url.clone()),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PathBuf> for Target {
    fn from(dir: PathBuf) -> Self {
        Target::Directory(dir)
    }
}

impl fmt::Display for Target {
    /// Without user, password and query, which may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Directory(dir) => dir.display().fmt(f),
            Target::Service(url) => {
                write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
                url.port().map_or(Ok(()), |port| write!(f, ":{port}"))?;
                f.write_str(url.path())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_services_are_told_apart() {
        for (text, dir) in [("data", "data"), ("engine:./d", "./d"), ("engine:///srv/d", "/srv/d"), ("c:\\d", "c:\\d")]
        {
            assert_eq!(text.parse(), Ok(Target::Directory(dir.into())), "{text}");
        }
        let service: Target = "redis://u:p@host:1/0?prefix=p".parse().unwrap();
        assert_eq!(service.to_string(), "redis://host:1/0");
        let cluster: Target = "redis-cluster://a:1?node=b:2".parse().unwrap();
        assert_eq!(cluster.to_string(), "redis-cluster://a:1");
        assert!("ftp://host".parse::<Target>().unwrap_err().contains("ftp"));
        for text in [
            "dynamodb://key:secret@",
            "dynamodb://table/more",
            "dynamodb://table?regoin=eu-west-1",
            "dynamodb://table?endpoint=localhost:8000",
            "dynamodb://table?create=yes",
            "cosmos://:secret@account",
            "cosmos://account/database",
            "firestore://",
            "firestore://project/database/more",
            "redis://host?prefx=a",
            "etcd://host/path",
            "redis://host?ca=secret.pem",
            "rediss://host?ca=",
            "etcds://host?cert=secret.pem",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            let scheme = text.split_once(':').unwrap().0;
            assert!(error.contains(scheme) && !error.contains("secret"), "{text}: {error}");
        }
        for text in [
            "dynamodb://A_table.b?region=eu-west-1&prefix=p",
            "cosmos://account/db/container",
            "firestore://project",
            "firestore://project/database?endpoint=http://127.0.0.1:1",
            "etcd://a:1/?node=b:2&node=c:3&prefix=p",
            "rediss://u:p@host:1/3?protocol=resp3&ca=a.pem",
            "etcds://host?ca=a.pem&cert=b.pem&key=c.pem",
        ] {
            assert!(matches!(text.parse(), Ok(Target::Service(_))), "{text}");
        }
        let relative: Target = "rediss-cluster://u:p%40@h:1?node=b:2&ca=a%26b.pem&prefix=x%20y".parse().unwrap();
        let Target::Service(placed) = relative.relative_to(Path::new("/etc/kvasi")) else { panic!("a service") };
        let pairs: Vec<_> = placed.query_pairs().map(|(name, value)| format!("{name} {value}")).collect();
        assert_eq!(pairs, ["node b:2", "ca /etc/kvasi/a&b.pem", "prefix x y"]);
        assert!(!"redis://u:secret@h:x".parse::<Target>().unwrap_err().contains("secret"));
    }
}
