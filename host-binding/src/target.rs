//! Where a bucket's keys live, as a person writes it: a directory or the URL of a service.

use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use url::Url;

/// The kinds of services that the crate has features for.
const SERVICES: [&str; 10] = [
    "redis",
    "rediss",
    "redis-cluster",
    "rediss-cluster",
    "memcached",
    "etcd",
    "etcds",
    "dynamodb",
    "cosmos",
    "firestore",
];

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
        if !SERVICES.contains(&scheme) {
            return Err(format!(
                "{scheme}:// is no kind of store: a directory is, or engine:DIR, or a URL of {}",
                SERVICES.join(", ")
            ));
        }
        // The text itself may hold a password: it is not repeated.
        Url::parse(text).map(Target::Service).map_err(|error| format!("this is not a {scheme} URL: {error}"))
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
        let service: Target = "redis://u:p@host:1/0?password=p".parse().unwrap();
        assert_eq!(service.to_string(), "redis://host:1/0");
        let cluster: Target = "redis-cluster://a:1?node=b:2".parse().unwrap();
        assert_eq!(cluster.to_string(), "redis-cluster://a:1");
        assert!("ftp://host".parse::<Target>().unwrap_err().contains("ftp"));
        assert!(!"redis://u:secret@h:x".parse::<Target>().unwrap_err().contains("secret"));
    }
}
