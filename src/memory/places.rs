//! Which pages two images have at places where their storage can be shared. Pure.

use std::io::{self, Read, Seek};

use super::Image;
use super::entries::PAGE;
use super::stream::{self, BadStream};

/// Where the pages of an image stand: sixteen bytes for each. That is the number of the page, where it stands in the
/// file, in pages, and how many pages stand before it, from the highest bits to the lowest.
#[derive(Debug, Default)]
pub struct Places(Vec<u128>);

/// No host has more memory.
const PFN_BITS: u32 = 44;
const NUMBER_BITS: u32 = 42;
const STEP: u64 = PAGE as u64;
/// The most that is told of at once, in bytes.
const LONGEST: u64 = 16 << 20;

/// As many bytes of one image as of the other, that may be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub from: u64,
    pub to: u64,
    /// How many pages stand before it in each of them.
    pub before: (u64, u64),
    pub length: u64,
}

impl Places {
    /// Looks at the entries of all pages of an image. The last content of a page counts.
    pub fn of<F: Read + Seek>(
        file: &mut F,
        image: &Image,
        stop: &dyn Fn() -> bool,
    ) -> Result<Places, BadStream> {
        let fit = image.stream_len / STEP;
        let most = image.sums.map_or(fit, |table| table.count.min(fit));
        let mut places = Vec::new();
        let room = usize::try_from(most).map_err(io::Error::other)?;
        // What is not used of it takes no memory.
        places.try_reserve_exact(room).map_err(io::Error::other)?;
        let end = image.stream_offset + image.stream_len;
        let mut number = 0;
        stream::pages(file, image.stream_offset, end, &mut |pfn, at| {
            go_on(stop)?;
            if places.len() < room {
                places.extend(packed(pfn, at, number));
            }
            number += 1;
            Ok(())
        })?;
        places.sort_unstable();
        // The first of its kind is kept, and the last is wanted.
        places.reverse();
        places.dedup_by_key(|place| *place >> (2 * NUMBER_BITS));
        places.reverse();
        Ok(Places(places))
    }

    /// What they take of memory, in bytes.
    #[cfg(test)]
    pub fn size(&self) -> u64 {
        (self.0.capacity() * size_of::<u128>()) as u64
    }

    /// Whether there is nothing to share.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a page stands, and how many stand before it.
    fn of_page(&self, pfn: u64) -> Option<(u64, u64)> {
        let number = |place: u128| u64::try_from(place & ((1 << NUMBER_BITS) - 1)).ok();
        let key = |place: &u128| place >> (2 * NUMBER_BITS);
        let place = self.0[self.0.binary_search_by_key(&u128::from(pfn), key).ok()?];
        Some((number(place >> NUMBER_BITS)?.checked_mul(STEP)?, number(place)?))
    }

    /// Tells where pages of another image follow each other as they do here.
    pub fn runs<F: Read + Seek>(
        &self,
        file: &mut F,
        image: &Image,
        stop: &dyn Fn() -> bool,
        take: &mut dyn FnMut(Run) -> io::Result<()>,
    ) -> Result<(), BadStream> {
        let mut next: Option<Run> = None;
        let end = image.stream_offset + image.stream_len;
        let mut number = 0;
        stream::pages(file, image.stream_offset, end, &mut |pfn, to| {
            go_on(stop)?;
            let before = number;
            number += 1;
            let Some((from, old)) = self.of_page(pfn).filter(|_| is_aligned(to)) else {
                return Ok(());
            };
            let here = Run { from, to, before: (old, before), length: STEP };
            match &mut next {
                Some(run) if run.is_followed_by(here) => run.length += STEP,
                _ => next.replace(here).map_or(Ok(()), &mut *take)?,
            }
            Ok(())
        })?;
        Ok(next.map_or(Ok(()), take)?)
    }
}

impl Run {
    fn is_followed_by(self, other: Run) -> bool {
        let Run { from, to, before: (old, new), length } = self;
        let pages = length / STEP;
        (from + length, to + length) == (other.from, other.to)
            && (old + pages, new + pages) == other.before
            && length < LONGEST
    }
}

/// `None` if it cannot be shared, or is beyond what any host has.
fn packed(pfn: u64, at: u64, number: u64) -> Option<u128> {
    let place = at / STEP;
    let fits = pfn >> PFN_BITS == 0 && place >> NUMBER_BITS == 0 && number >> NUMBER_BITS == 0;
    (is_aligned(at) && fits).then(|| {
        (u128::from(pfn) << NUMBER_BITS | u128::from(place)) << NUMBER_BITS | u128::from(number)
    })
}

/// An error if somebody wants it to stop.
pub fn go_on(stop: &dyn Fn() -> bool) -> io::Result<()> {
    match stop() {
        true => Err(io::Error::new(io::ErrorKind::Interrupted, "a signal stopped it")),
        false => Ok(()),
    }
}

fn is_aligned(at: u64) -> bool {
    at % STEP == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_takes_sixteen_bytes_and_comes_back_as_it_was() {
        assert_eq!(size_of::<u128>(), 16);
        let most = (1 << 42) - 1;
        let all = [(0, 0, 0), (7, 4096 * 9, 3), ((1 << 44) - 1, most * 4096, most)];
        let places = Places(all.iter().filter_map(|(p, at, n)| packed(*p, *at, *n)).collect());
        for (pfn, at, number) in all {
            assert_eq!(places.of_page(pfn), Some((at, number)));
        }
        assert_eq!(places.of_page(8), None);
        // Beyond: nothing that could be taken for another page.
        for (pfn, at, number) in
            [(1 << 44, 0, 0), (1, (most + 1) * 4096, 0), (1, 0, most + 1), (1, 4100, 0)]
        {
            assert_eq!(packed(pfn, at, number), None);
        }
    }
}
