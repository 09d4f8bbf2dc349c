//! Faults put into the engine on purpose, one at a time and switched on at run time, to see that the campaigns find them.
//!
//! Without the feature `testing` nothing is left of them: [`seeded`] is the constant `false`. With it, the switch is one for
//! the whole process, so what runs with a fault runs in a process of its own.

#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU8, Ordering};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Bug {
    /// A sync of the log does not reach the disk.
    NoLogSync,
    /// A commit is acknowledged before its sync.
    AckBeforeSync,
    /// A full segment is not synced before the one after it is acknowledged.
    NoSyncOfClosedSegment,
    /// The name of a new segment is not synced.
    NoNameSync,
    /// A segment is named by the manifest before its header is on the disk.
    NoHeaderSync,
    /// The file of a cleaned segment goes before the manifest says so.
    UnlinkBeforeEdit,
    /// A segment whose file is recycled has the salt of the one before it.
    SpareKeepsSalt,
    /// An edit of the manifest is not synced.
    NoManifestSync,
    /// The log goes on in a segment that a crash left.
    AppendAfterReopen,
    /// What a dead process left is believed to be on the disk after a sync of it.
    NoRewriteAfterCrash,
    /// An open shows what the next power cut can take.
    OpenDoesNotSync,
    /// The checksum of a record is not looked at.
    RecordUnchecked,
    /// The checksum of a manifest edit is not looked at.
    EditUnchecked,
    /// The checksum of the superblock is not looked at.
    SuperblockUnchecked,
    /// The checksum of a segment header is not looked at.
    SegmentHeaderUnchecked,
    /// The checksum of a segment link is not looked at.
    LinkUnchecked,
    /// The checksum of a block of a key run is not looked at.
    RunBlockUnchecked,
    /// The checksums of a directory checkpoint are not looked at.
    CheckpointUnchecked,
    /// Damage in the middle of the log passes for a torn tail.
    WitnessIgnored,
    /// A record says of what is not synced that it is durable.
    MarkTooHigh,
    /// A store whose disk has failed takes writes.
    WriteAfterPoison,
    /// A wait whose sync failed says that all is well.
    FailureTakenForSuccess,
    /// A full disk stops the store for good.
    FullDiskStops,
    /// An edit without space is left half written, and the next one goes behind it.
    HalfEditStays,
    /// A write that did half is taken for done.
    ShortWriteTaken,
    /// A read that a signal interrupts is the end of the file.
    InterruptionEndsRead,
    /// A swap is made whatever the version, as long as there is a value.
    SwapIgnoresVersion,
    /// An increment reads the number before it has the lock.
    IncrementReadsEarly,
    /// A write of a store that syncs is seen before it is on the disk.
    VisibleBeforeDurable,
    /// A write does not wait behind one to the same key that is not visible yet.
    PendingOvertaken,
    /// Of a batch cut short the whole part is replayed.
    HalfBatchReplayed,
    /// A read does not look whether a value has expired.
    ExpiryIgnored,
    /// A listing does not look whether a value has expired.
    ExpiryIgnoredByListing,
    /// A page of a listing loses the key after its last.
    PageLosesKey,
    /// A read of many keys does not look whether a batch came between.
    GetManyTorn,
    /// The cleaner drops every tombstone.
    TombstoneDropped,
    /// The cleaner drops what has expired, and an older value comes back.
    ExpiredDroppedWithoutTombstone,
    /// A segment is given up before what was moved out of it is durable.
    CleanedBeforeSync,
    /// A record that is moved gets a new version.
    MoveLosesVersion,
    /// A record that is moved does not expire any more.
    MoveLosesExpiry,
    /// A record is moved past a write that is not visible yet, and counts for newer.
    MovedWins,
    /// The cleaner leaves a large live record behind.
    LiveDropped,
    /// A bucket gets the id of one that was dropped.
    BucketIdReused,
    /// Dropping a bucket is not logged.
    DropNotLogged,
    /// Dropping a bucket takes keys of another along.
    DropForgetsNeighbour,
    /// Of two entries of a key a merge keeps the older.
    MergeKeepsOlder,
    /// Every merge drops tombstones, whatever older runs hold.
    MergeDropsTombstone,
    /// A run says that it covers the segment after it.
    RunCoversTooMuch,
    /// A block of a run that is damaged is the end of it.
    DamagedRunEnds,
    /// A checkpoint claims what was logged while it was written.
    CheckpointTooNew,
    /// A checkpoint is named before the log it points at is synced.
    CheckpointBeforeLog,
    /// Address slots of cleaned segments are used again while a checkpoint points there.
    GhostsForgotten,
    /// Files that a crash left are not removed.
    OrphansLeft,
    /// Log positions of segments that are gone are used again.
    PositionsReused,
    /// Segments cut off the log are removed from the oldest on.
    OldestRemovedFirst,
    /// A manifest that ends in a torn edit is appended to.
    TornEditKept,
    /// The superblock is written over the slot that counts.
    SameSuperblockSlot,
    /// The superblock names a manifest that is not synced.
    ManifestNotSyncedFirst,
    /// Closing does not sync the log.
    CloseDoesNotSync,
    /// A close writes down an end behind the last record.
    CloseSaysTooMuch,
    /// An open for reading only takes the manifest over.
    LookingWrites,
    /// A backup shares the segment that is still written.
    BackupLinksActive,
    /// A backup does not sync what it copies.
    BackupWithoutSync,
    /// A sync does not wake the futures that wait for it.
    WakersLost,
}

/// All of them, with what each does.
#[cfg(feature = "testing")]
pub(crate) const BUGS: [(Bug, &str); 64] = [
    (Bug::NoLogSync, "a sync of the log does not reach the disk"),
    (Bug::AckBeforeSync, "a commit is acknowledged before its sync"),
    (Bug::NoSyncOfClosedSegment, "a full segment is not synced before the one after it is acknowledged"),
    (Bug::NoNameSync, "the name of a new segment is not synced"),
    (Bug::NoHeaderSync, "a segment is named by the manifest before its header is on the disk"),
    (Bug::UnlinkBeforeEdit, "the file of a cleaned segment goes before the manifest says so"),
    (Bug::SpareKeepsSalt, "a segment whose file is recycled has the salt of the one before it"),
    (Bug::NoManifestSync, "an edit of the manifest is not synced"),
    (Bug::AppendAfterReopen, "the log goes on in a segment that a crash left"),
    (Bug::NoRewriteAfterCrash, "what a dead process left is believed to be on the disk after a sync of it"),
    (Bug::OpenDoesNotSync, "an open shows what the next power cut can take"),
    (Bug::RecordUnchecked, "the checksum of a record is not looked at"),
    (Bug::EditUnchecked, "the checksum of a manifest edit is not looked at"),
    (Bug::SuperblockUnchecked, "the checksum of the superblock is not looked at"),
    (Bug::SegmentHeaderUnchecked, "the checksum of a segment header is not looked at"),
    (Bug::LinkUnchecked, "the checksum of a segment link is not looked at"),
    (Bug::RunBlockUnchecked, "the checksum of a block of a key run is not looked at"),
    (Bug::CheckpointUnchecked, "the checksums of a directory checkpoint are not looked at"),
    (Bug::WitnessIgnored, "damage in the middle of the log passes for a torn tail"),
    (Bug::MarkTooHigh, "a record says of what is not synced that it is durable"),
    (Bug::WriteAfterPoison, "a store whose disk has failed takes writes"),
    (Bug::FailureTakenForSuccess, "a wait whose sync failed says that all is well"),
    (Bug::FullDiskStops, "a full disk stops the store for good"),
    (Bug::HalfEditStays, "an edit without space is left half written, and the next one goes behind it"),
    (Bug::ShortWriteTaken, "a write that did half is taken for done"),
    (Bug::InterruptionEndsRead, "a read that a signal interrupts is the end of the file"),
    (Bug::SwapIgnoresVersion, "a swap is made whatever the version, as long as there is a value"),
    (Bug::IncrementReadsEarly, "an increment reads the number before it has the lock"),
    (Bug::VisibleBeforeDurable, "a write of a store that syncs is seen before it is on the disk"),
    (Bug::PendingOvertaken, "a write does not wait behind one to the same key that is not visible yet"),
    (Bug::HalfBatchReplayed, "of a batch cut short the whole part is replayed"),
    (Bug::ExpiryIgnored, "a read does not look whether a value has expired"),
    (Bug::ExpiryIgnoredByListing, "a listing does not look whether a value has expired"),
    (Bug::PageLosesKey, "a page of a listing loses the key after its last"),
    (Bug::GetManyTorn, "a read of many keys does not look whether a batch came between"),
    (Bug::TombstoneDropped, "the cleaner drops every tombstone"),
    (Bug::ExpiredDroppedWithoutTombstone, "the cleaner drops what has expired, and an older value comes back"),
    (Bug::CleanedBeforeSync, "a segment is given up before what was moved out of it is durable"),
    (Bug::MoveLosesVersion, "a record that is moved gets a new version"),
    (Bug::MoveLosesExpiry, "a record that is moved does not expire any more"),
    (Bug::MovedWins, "a record is moved past a write that is not visible yet, and counts for newer"),
    (Bug::LiveDropped, "the cleaner leaves a large live record behind"),
    (Bug::BucketIdReused, "a bucket gets the id of one that was dropped"),
    (Bug::DropNotLogged, "dropping a bucket is not logged"),
    (Bug::DropForgetsNeighbour, "dropping a bucket takes keys of another along"),
    (Bug::MergeKeepsOlder, "of two entries of a key a merge keeps the older"),
    (Bug::MergeDropsTombstone, "every merge drops tombstones, whatever older runs hold"),
    (Bug::RunCoversTooMuch, "a run says that it covers the segment after it"),
    (Bug::DamagedRunEnds, "a block of a run that is damaged is the end of it"),
    (Bug::CheckpointTooNew, "a checkpoint claims what was logged while it was written"),
    (Bug::CheckpointBeforeLog, "a checkpoint is named before the log it points at is synced"),
    (Bug::GhostsForgotten, "address slots of cleaned segments are used again while a checkpoint points there"),
    (Bug::OrphansLeft, "files that a crash left are not removed"),
    (Bug::PositionsReused, "log positions of segments that are gone are used again"),
    (Bug::OldestRemovedFirst, "segments cut off the log are removed from the oldest on"),
    (Bug::TornEditKept, "a manifest that ends in a torn edit is appended to"),
    (Bug::SameSuperblockSlot, "the superblock is written over the slot that counts"),
    (Bug::ManifestNotSyncedFirst, "the superblock names a manifest that is not synced"),
    (Bug::CloseDoesNotSync, "closing does not sync the log"),
    (Bug::CloseSaysTooMuch, "a close writes down an end behind the last record"),
    (Bug::LookingWrites, "an open for reading only takes the manifest over"),
    (Bug::BackupLinksActive, "a backup shares the segment that is still written"),
    (Bug::BackupWithoutSync, "a backup does not sync what it copies"),
    (Bug::WakersLost, "a sync does not wake the futures that wait for it"),
];

#[cfg(feature = "testing")]
static NOW: AtomicU8 = AtomicU8::new(NONE);
#[cfg(feature = "testing")]
const NONE: u8 = u8::MAX;

/// Whether this fault is in the engine now.
#[cfg(feature = "testing")]
#[inline]
pub(crate) fn seeded(bug: Bug) -> bool {
    NOW.load(Ordering::Relaxed) == bug as u8
}

/// Whether this fault is in the engine now: never.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub(crate) const fn seeded(_: Bug) -> bool {
    false
}

/// Puts a fault into the engine of this process, in place of the one that was there.
#[cfg(feature = "testing")]
pub(crate) fn put_in(bug: Option<Bug>) {
    NOW.store(bug.map_or(NONE, |bug| bug as u8), Ordering::Relaxed);
}
