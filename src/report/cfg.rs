//! What has become of the domain's xl configuration file, or what a person has to do with it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::tool::quote;
use crate::xlcfg::literal;

/// An xl configuration file that was given other images.
#[derive(Debug, Clone, Serialize)]
pub struct CfgReplaced {
    pub path: PathBuf,
    /// The file as it was.
    pub backup: PathBuf,
}

impl fmt::Display for CfgReplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, backup) = (quote(&self.path), quote(&self.backup));
        write!(f, "{path} names the new images; the old file is kept as {backup}")
    }
}

/// An xl configuration file that was not given other images.
#[derive(Debug, Clone, Serialize)]
pub struct CfgTrouble {
    pub path: PathBuf,
    /// Why not.
    pub why: String,
}

pub(super) fn write_cfg_disks(
    f: &mut fmt::Formatter<'_>,
    domain: &str,
    trouble: Option<&CfgTrouble>,
    entries: &[String],
) -> fmt::Result {
    if entries.is_empty() {
        return Ok(());
    }
    match trouble {
        None => write!(f, "xl-snapshot does not know the configuration file of {domain}.")?,
        Some(CfgTrouble { path, why }) => {
            writeln!(f, "The xl configuration file {} was not rewritten:", quote(path))?;
            writeln!(f, "{why}.")?;
        }
    }
    let gap = if trouble.is_none() { " " } else { "" };
    writeln!(f, "{gap}Before its next xl create,")?;
    writeln!(f, "give it these disk entries, or it will write into the frozen images:")?;
    entries.iter().try_for_each(|entry| writeln!(f, "  {}", literal(entry, "'")))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn an_entry_can_be_pasted_into_a_configuration() {
        let mut text = String::new();
        struct Lines(Vec<String>);
        impl fmt::Display for Lines {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_cfg_disks(f, "web1", None, &self.0)
            }
        }
        let entries = ["vdev=xvda,target=/a".to_owned(), r"vdev=xvdb,target=/it's \".to_owned()];
        let _ = write!(text, "{}", Lines(entries.to_vec()));
        assert!(
            text.ends_with("  'vdev=xvda,target=/a'\n  'vdev=xvdb,target=/it\\'s \\\\'\n"),
            "{text}"
        );
    }
}
