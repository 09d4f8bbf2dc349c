//! Where a bucket's keys live, as a person writes it: a directory or the URL of a service.

use serde::Deserialize;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
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

const fn kind(scheme: &'static str, shape: &'static str, parts: RangeInclusive<usize>) -> Kind {
    Kind { scheme, shape, host: false, parts, parameters: &["node", "prefix"] }
}

static KINDS: [Kind; 10] = [
    Kind { parameters: &["node", "prefix", "protocol"], ..kind("redis", "redis://HOST[:PORT][/NUMBER]", 0..=1) },
    Kind { parameters: &["node", "prefix", "protocol"], ..kind("rediss", "rediss://HOST[:PORT][/NUMBER]", 0..=1) },
    Kind { parameters: &["node", "prefix", "protocol"], ..kind("redis-cluster", "redis-cluster://HOST[:PORT]", 0..=0) },
    Kind {
        parameters: &["node", "prefix", "protocol"],
        ..kind("rediss-cluster", "rediss-cluster://HOST[:PORT]", 0..=0)
    },
    Kind { parameters: &["prefix"], ..kind("memcached", "memcached://HOST[:PORT]", 0..=0) },
    kind("etcd", "etcd://HOST[:PORT]", 0..=0),
    kind("etcds", "etcds://HOST[:PORT]", 0..=0),
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
                "region" | "node" => !value.is_empty(),
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
            "rediss://u:p@host:1/3?protocol=resp3",
        ] {
            assert!(matches!(text.parse(), Ok(Target::Service(_))), "{text}");
        }
        assert!(!"redis://u:secret@h:x".parse::<Target>().unwrap_err().contains("secret"));
    }
}
