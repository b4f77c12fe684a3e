//! Opens a memory image to revert to, or copies it from a pipe.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::mem;
use std::os::fd::AsFd;
use std::path::Path;

use crate::create::room;
use crate::domain::DomainConfig;
use crate::error::{Error, Result};
use crate::host::files;
use crate::memory::frames::{self, Unpacked};
use crate::memory::sums::Checked;
use crate::memory::{BadImage, Form, Image, PARTIAL, read_front_of_stream};
use crate::names::is_word;
use crate::tool::quote;

/// The hint for an image that cannot be used.
const UNUSABLE: &str =
    "nothing was changed; use an image that create has written, or another copy of it";

/// An image to revert to, read and found whole.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub file: File,
    /// What it contains.
    pub image: Image,
    /// As the user named it.
    pub name: String,
}

impl Source {
    /// Opens the image at `path`, or takes standard input for `-`.
    ///
    /// What cannot be read twice is copied to an unlinked temporary file first: nothing is
    /// destroyed before the whole image is known to be there.
    pub fn open(path: &Path) -> Result<Source> {
        let name = path.display().to_string();
        let trouble = |error: io::Error| {
            let is_name = is_word(path) && error.kind() == io::ErrorKind::NotFound;
            Error::refused(format!("Image {name}")).because(error).hint(match is_name {
                true => format!(
                    "to name a snapshot of a domain, add its name: {name}/NAME; xl-snapshot list {} shows them",
                    quote(path)
                ),
                false => "name the snapshot as DOMAIN/NAME, or pass its image, - or a SPEC.toml; xl-snapshot list \
                          shows all"
                    .to_owned(),
            })
        };
        if path.extension().is_some_and(|extension| extension == &PARTIAL[1..]) {
            return Err(Error::refused(format!("Image {name}"))
                .because("it was never completed: its snapshot failed or still runs")
                .hint(
                    "if no create is running, remove it with what it left on the disks: xl-snapshot create DOMAIN \
                     --clean",
                ));
        }
        let file = if path.as_os_str() == "-" {
            standard_input().map_err(trouble)?
        } else {
            files::open(path).map_err(trouble)?
        };
        Source::of(file, name)
    }

    /// An image that is open already.
    pub fn of(mut file: File, name: String) -> Result<Source> {
        let image = Image::read(&mut file)
            .map_err(|why| {
                let hint = match why {
                    BadImage::NoRecord => {
                        "to go back to its memory alone, use xl restore; if you have its disks of that moment, \
                         describe them in a SPEC.toml, see xl-snapshot.toml(5)"
                    }
                    _ => UNUSABLE,
                };
                Error::refused(format!("Image {name}")).because(why).hint(hint)
            })?;
        Ok(Source { file, image, name })
    }

    /// The file, if `xl restore` can read it as it is: plain, and with this configuration of the domain.
    pub fn as_it_is(&self, config: &DomainConfig) -> io::Result<Option<File>> {
        // To the byte: libxl's parser is another one.
        let fits = self.image.form == Form::Plain && self.image.config == config.to_json();
        fits.then(|| self.file.try_clone()).transpose()
    }

    /// The stream of the image, as `xl restore` wants it behind a header.
    pub fn stream(&mut self) -> io::Result<Box<dyn Read + '_>> {
        let Image { stream_offset, stream_len, form, sums, read_whole, .. } = self.image;
        if let Some(table) = sums.filter(|_| !read_whole) {
            return Ok(Box::new(Checked::new(&mut self.file, stream_offset, table)));
        }
        if form == Form::Plain {
            self.file.seek(SeekFrom::Start(stream_offset))?;
            return Ok(Box::new(&mut self.file));
        }
        self.file.rewind()?;
        let mut image = Unpacked::new(&mut self.file)?;
        let skipped = io::copy(&mut image.by_ref().take(stream_offset), &mut io::sink())?;
        if skipped != stream_offset {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Box::new(Whole { image, left: stream_len }))
    }

    /// Goes on without the checksums if they are damaged themselves, and returns what is to be told then: they say
    /// nothing of the memory. Reads a 500th of a plain image, and nothing of others.
    pub fn leave_damaged_sums(&mut self) -> Result<Option<String>> {
        let lost = mem::take(&mut self.image.sums_lost);
        let good = self.image.sums.map_or(Ok(true), |table| table.is_good(&mut self.file));
        let good = good.map_err(|why| {
            Error::refused(format!("Image {} cannot be read", self.name))
                .because(why)
                .hint("see the storage that it is on: dmesg; or use another snapshot")
        })?;
        if good && !lost {
            return Ok(None);
        }
        self.image.sums = None;
        let words = "the checksums in the image are damaged, so that its memory cannot be verified";
        Ok(Some(words.into()))
    }

    /// Reads every byte of the image, and checks its checksums, where it has any.
    pub fn verify(&mut self) -> Result<()> {
        self.image.read_all(&mut self.file).map_err(|why| {
            Error::refused(format!("Image {}", self.name)).because(why).hint(UNUSABLE)
        })
    }
}

/// The next `left` bytes of an image, the last of which come only when all the rest was read as well:
/// there are the checksums. Whoever needs all of them goes on with nothing that is damaged.
#[derive(Debug)]
struct Whole<R: Read> {
    image: Unpacked<R>,
    left: u64,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.image.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        if self.left == 0 {
            io::copy(&mut self.image, &mut io::sink())?;
        }
        Ok(count)
    }
}

fn standard_input() -> io::Result<File> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(io::Error::other("standard input is a terminal, not an image"));
    }
    let mut input = File::from(stdin.as_fd().try_clone_to_owned()?);
    if input.metadata()?.is_file() {
        return Ok(input);
    }
    copied(&mut input).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::other("standard input is empty, or ends before the image does")
        }
        _ => error,
    })
}

/// Memory images are large: this is on a disk where /tmp may be memory.
const COPIES: &str = "/var/tmp";
/// How much of an image is copied between two looks at the room for it, in bytes.
const PIECE: u64 = 16 << 20;

/// Copies an image that can be read but once. What cannot be one is refused at its first bytes, and what
/// has no end before there is no room for others.
pub(super) fn copied(input: &mut impl Read) -> io::Result<File> {
    let mut copy = tempfile::tempfile_in(COPIES)?;
    let mut count = 0;
    let front = Tee { input: &mut *input, copy: &mut copy, count: &mut count };
    let (_, record) = read_front_of_stream(front).map_err(io::Error::other)?;
    let place = Path::new(COPIES).join("image");
    let files::Room { free, total, .. } = files::room(&place)?;
    // What it says of its length is of the plain image, and of one in a file.
    let says = (record.complete && record.image_size > 0).then_some(record.image_size);
    let reserve = room::reserve(free, total, says.unwrap_or(free / 2).min(free));
    loop {
        let piece = io::copy(&mut input.by_ref().take(PIECE), &mut copy)?;
        count += piece;
        if says.is_some_and(|says| count > frames::longest(says)) {
            return Err(io::Error::other("it is longer than it says"));
        }
        if piece == 0 {
            copy.rewind()?;
            return Ok(copy);
        }
        if files::free_space(&place)? < reserve {
            let why = format!("there is no room for it in {COPIES}, where it is copied to first");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
    }
}

/// Copies what is read to a second place.
struct Tee<'a, R> {
    input: &'a mut R,
    copy: &'a mut File,
    count: &'a mut u64,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.copy.write_all(&buffer[..count])?;
        *self.count += count as u64;
        Ok(count)
    }
}
