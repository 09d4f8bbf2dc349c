//! The code of components, kept from one start to the next, so that the second compiles nothing: wasmtime's own cache.
//!
//! Flow: `component`, `serve`, `watch` -> [`Compiled`] -> the configuration of an engine -> wasmtime, which looks for what it compiled
//! by the hash of the component, of its own version and of all settings.
//! Invariants: 1. What is read from there runs with every right of this process. So it is read from a directory that belongs to this
//! user, that nobody else may even look into, and that nobody but this user and root can put another in the place of. 2. Without a
//! cache everything is as with one, later.

use std::io;
use std::path::{Path, PathBuf};
use wasmtime::{Cache, CacheConfig, Config};

/// Where compiled code is kept, if anywhere.
#[derive(Debug)]
pub(crate) struct Compiled(Option<Cache>);

impl Compiled {
    /// Nowhere.
    pub(crate) const NOT_KEPT: Compiled = Compiled(None);

    /// In `dir`, or in this user's directory for such things. What speaks against it is logged, and then nothing is kept.
    pub(crate) fn kept_in(dir: Option<&Path>) -> Compiled {
        let Some(dir) = dir.map(Path::to_path_buf).or_else(users_dir) else {
            tracing::debug!("compiled code is not kept: this user has no directory for it");
            return Compiled::NOT_KEPT;
        };
        let cache = make(&dir).and_then(|dir| {
            let mut config = CacheConfig::new();
            config.with_directory(dir);
            Cache::new(config).map_err(io::Error::other)
        });
        match cache {
            Ok(cache) => Compiled(Some(cache)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!("compiled code is not kept in {}: {error}", dir.display());
                Compiled::NOT_KEPT
            }
            // A container without a home, a full disk: no matter for who runs a component.
            Err(error) => {
                tracing::debug!("compiled code is not kept in {}: {error}", dir.display());
                Compiled::NOT_KEPT
            }
        }
    }

    /// Has what an engine of this configuration compiles kept.
    pub(crate) fn configure(&self, config: &mut Config) {
        config.cache(self.0.clone());
    }

    /// Says to the log whether a component that was just made was compiled.
    pub(crate) fn tell(&self) {
        match &self.0 {
            None => tracing::debug!("the component was compiled"),
            Some(cache) if cache.cache_hits() == 0 => {
                tracing::debug!("the component was compiled, and its code is kept")
            }
            Some(_) => tracing::debug!("the component was compiled before"),
        }
    }
}

/// The user's directory for what can be made again.
fn users_dir() -> Option<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let dir = if cfg!(windows) {
        named("LOCALAPPDATA")?
    } else if cfg!(target_os = "macos") {
        named("HOME")?.join("Library/Caches")
    } else {
        named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")))?
    };
    Some(dir.join("kvasi").join("compiled"))
}

/// The directory, made if it is not there; without links in its path.
///
/// # Errors
/// `PermissionDenied` if somebody else could have put something into it, or could put another in its place.
#[cfg(unix)]
fn make(dir: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    const OF_OTHERS: u32 = 0o077;
    const WRITABLE_TO_OTHERS: u32 = 0o022;
    /// Who may write to such a directory may still take away only what is theirs.
    const STICKY: u32 = 0o1000;

    let refuse = |why: &str, dir: &Path| {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {why}", dir.display())))
    };
    let us = rustix::process::geteuid().as_raw();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let dir = std::fs::canonicalize(dir)?;
    let it = std::fs::symlink_metadata(&dir)?;
    if it.uid() != us {
        return refuse("belongs to another user", &dir);
    }
    if it.mode() & OF_OTHERS != 0 {
        return refuse("is open to other users: its mode must be 700", &dir);
    }
    for above in dir.ancestors().skip(1) {
        let it = std::fs::symlink_metadata(above)?;
        if it.uid() != us && it.uid() != 0 {
            return refuse("belongs to another user", above);
        }
        if it.mode() & WRITABLE_TO_OTHERS != 0 && it.mode() & STICKY == 0 {
            return refuse("can be written to by other users", above);
        }
    }
    Ok(dir)
}

/// The directory, made if it is not there. `LOCALAPPDATA` is closed to others by the rights that its own directory hands on.
#[cfg(not(unix))]
fn make(dir: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    std::fs::canonicalize(dir)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn nothing_is_taken_from_where_others_could_write() {
        let root = tempfile::tempdir().unwrap();
        let (above, dir) = (root.path().join("above"), root.path().join("above/compiled"));
        let made = make(&dir).unwrap();
        assert!(make(&dir).is_ok(), "as it was made");
        let mode = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let refused = |why| {
            let error = make(&dir).expect_err(why);
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{why}: {error}");
            assert!(Compiled::kept_in(Some(&dir)).0.is_none(), "{why}");
        };
        for open in [0o701, 0o710, 0o720, 0o722, 0o755] {
            mode(&made, open);
            refused("open to others");
        }
        mode(&made, 0o700);
        mode(&above, 0o777);
        refused("another could be put in its place");
        mode(&above, 0o1777);
        assert!(make(&dir).is_ok(), "in a directory such as /tmp nobody can");
        mode(&above, 0o755);
        std::os::unix::fs::symlink(&dir, root.path().join("link")).unwrap();
        assert_eq!(
            make(&root.path().join("link")).unwrap(),
            made,
            "a link is followed, and what it leads to is looked at"
        );
    }
}
