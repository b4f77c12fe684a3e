//! Reads what cannot be read twice as if one could seek in it: forward only.

use std::io::{self, Read, Seek, SeekFrom};

const BUFFER: usize = 128 << 10;

/// A reader that knows where it is.
#[derive(Debug)]
pub struct Forward<R> {
    input: R,
    at: u64,
    /// For what is skipped.
    buffer: Vec<u8>,
}

impl<R: Read> Forward<R> {
    /// From the first byte on.
    pub fn new(input: R) -> Self {
        Forward { input, at: 0, buffer: vec![0; BUFFER] }
    }

    /// How many bytes have been read.
    pub fn at(&self) -> u64 {
        self.at
    }
}

impl<R: Read> Read for Forward<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl<R: Read> Seek for Forward<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(target) => Some(target),
            SeekFrom::Current(count) => self.at.checked_add_signed(count),
            SeekFrom::End(_) => None,
        };
        let Some(mut left) = target.and_then(|target| target.checked_sub(self.at)) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            match self.input.read(&mut self.buffer[..room])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    self.at += count as u64;
                    left -= count as u64;
                }
            }
        }
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_only_and_not_beyond_the_end() {
        let bytes: Vec<u8> = (0..BUFFER + 10).map(|i| i.to_le_bytes()[0]).collect();
        let mut forward = Forward::new(bytes.as_slice());
        let mut byte = [0];
        forward.read_exact(&mut byte).unwrap();
        assert_eq!((byte, forward.at()), ([0], 1));
        forward.seek(SeekFrom::Start(BUFFER as u64 + 5)).unwrap();
        forward.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [5]);
        forward.seek(SeekFrom::Start(0)).unwrap_err();
        forward.seek(SeekFrom::End(0)).unwrap_err();
        let error = forward.seek(SeekFrom::Start(BUFFER as u64 + 11)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(forward.stream_position().unwrap(), BUFFER as u64 + 10);
    }
}
