//! Failing disks: every call of a workload fails once, or from then on, in every way; and the disk is full at every byte.
