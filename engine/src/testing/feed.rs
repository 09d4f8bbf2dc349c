//! The change feed of a store that holds still, against its state: whatever the log still tells of a key, its last word on it
//! is what the key holds; and a key that was written since the oldest position is told of.

use std::collections::BTreeMap;

use super::model::Seen;
use crate::{Change, Delivery, Store, WatchFrom};

/// Reads the whole feed.
pub(crate) fn check(store: &Store, seen: &Seen) -> Result<(), String> {
    let failed = |e: crate::Error| format!("the feed: {e:?}");
    let mut watch = store.watch(WatchFrom::Oldest).map_err(failed)?;
    let oldest = watch.position().get();
    let mut said = BTreeMap::new();
    let mut last = 0;
    while let Some(delivery) = watch.try_next().map_err(failed)? {
        let Delivery::Commit(events) = delivery else { return Err(format!("the feed: {delivery:?}")) };
        for event in events {
            let version = event.version().get();
            if version <= last {
                return Err(format!("the feed: version {version} after {last}"));
            }
            last = version;
            let value = match event.change() {
                // What has expired reads as absent, and there is no event for that.
                Change::Set { expires_unix_ms: Some(at), .. } if *at <= crate::io::unix_ms() => None,
                Change::Set { value, .. } => Some(value.to_vec()),
                Change::Delete => None,
                // Its keys are of no bucket that there is: its id does not come again.
                Change::DropBucket => continue,
            };
            said.insert((event.bucket_id(), event.key().to_vec()), (version, value));
        }
    }
    if watch.position() != store.position() {
        return Err(format!("the feed ends at {:?}, the log at {:?}", watch.position(), store.position()));
    }
    for (name, keys) in seen {
        let bucket = store.existing_bucket(name).map_err(failed)?.ok_or("a bucket has gone")?;
        for ((_, key), (version, value)) in said.iter().filter(|((id, _), _)| *id == Some(bucket.entry.id)) {
            let now = keys.get(key);
            let same = match value {
                Some(value) => now.is_some_and(|(held, at)| held == value && at == version),
                None => now.is_none(),
            };
            if !same {
                let (key, held) = (key.escape_ascii(), now.map(|(_, version)| version));
                return Err(format!("the feed's last word on {key} of {name} is {version}, it holds {held:?}"));
            }
        }
        for (key, (_, version)) in keys.iter().filter(|(_, (_, version))| *version >= oldest) {
            if !said.contains_key(&(Some(bucket.entry.id), key.clone())) {
                return Err(format!("the feed does not tell of version {version} of {}", key.escape_ascii()));
            }
        }
    }
    Ok(())
}
