//! The parent snapshot in the record.

use super::*;
use crate::record::{Parent, ParentSource};

#[test]
fn the_record_says_what_the_disks_descended_from() {
    let job = job("s1", &[]);
    let seen = seen(&job);
    assert_eq!(image_of(&plan(&job, &seen).unwrap()).record.parent, None);
    let known = (Parent::Snapshot(Uuid::from_u128(7)), ParentSource::Mark);
    let record = image_of(&plan(&job.descending_from(Some(known)), &seen).unwrap()).record.clone();
    assert_eq!((record.parent, record.parent_by), (Some(known.0), Some(known.1)));
}
