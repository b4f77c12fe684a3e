//! Which pages two images have at places where their storage can be shared. Pure.

use std::io::{Read, Seek};

use super::Image;
use super::entries::PAGE;
use super::stream::{self, BadStream};

/// Where the pages of an image stand: sixteen bytes for each.
#[derive(Debug, Default)]
pub struct Places(Vec<(u64, u64)>);

/// As many bytes of one image as of the other, that may be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub from: u64,
    pub to: u64,
    pub length: u64,
}

impl Places {
    /// Looks at the entries of all pages of an image. The last content of a page counts.
    pub fn of<F: Read + Seek>(file: &mut F, image: &Image) -> Result<Places, BadStream> {
        let mut places = Vec::new();
        let end = image.stream_offset + image.stream_len;
        stream::pages(file, image.stream_offset, end, &mut |pfn, at| {
            if is_aligned(at) {
                places.push((pfn, at));
            }
        })?;
        places.sort_unstable();
        // The first of its kind is kept, and the last is wanted.
        places.reverse();
        places.dedup_by_key(|(pfn, _)| *pfn);
        places.reverse();
        Ok(Places(places))
    }

    /// Whether there is nothing to share.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a page stands.
    fn of_page(&self, pfn: u64) -> Option<u64> {
        let index = self.0.binary_search_by_key(&pfn, |(pfn, _)| *pfn).ok()?;
        Some(self.0[index].1)
    }

    /// Where pages of another image follow each other as they do here.
    pub fn runs<F: Read + Seek>(&self, file: &mut F, image: &Image) -> Result<Vec<Run>, BadStream> {
        const STEP: u64 = PAGE as u64;
        let mut runs: Vec<Run> = Vec::new();
        let end = image.stream_offset + image.stream_len;
        stream::pages(file, image.stream_offset, end, &mut |pfn, to| {
            let Some(from) = self.of_page(pfn).filter(|_| is_aligned(to)) else { return };
            match runs.last_mut() {
                Some(run) if (run.from + run.length, run.to + run.length) == (from, to) => {
                    run.length += STEP;
                }
                _ => runs.push(Run { from, to, length: STEP }),
            }
        })?;
        Ok(runs)
    }
}

fn is_aligned(at: u64) -> bool {
    at % PAGE as u64 == 0
}
