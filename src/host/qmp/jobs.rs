//! Block jobs: merging images under a running guest.
//!
//! Nodes are always named, and so is the base: without one, `block-commit` goes down to the last image and
//! ruins every snapshot on its way. A job stays until it is dismissed, because only then can it be asked
//! why it failed. The `job-*` commands are those that are not deprecated (QEMU 10.1,
//! docs/about/deprecated.rst).

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use qapi::qmp::{
    BlockdevOnError, block_commit, block_stream, blockdev_del,
    blockdev_snapshot_delete_internal_sync, job_cancel, job_complete, job_dismiss, query_jobs,
    query_named_block_nodes,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::drives::file_name;
use super::{Patience, Qmp, QmpError, request};

/// A job of QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    /// Its name.
    pub id: String,
    /// How far it is: `running`, `ready`, `concluded`...
    pub status: String,
    /// Bytes that are done.
    #[serde(default)]
    pub current_progress: u64,
    /// Bytes in all, as far as it knows: more if the guest writes meanwhile.
    #[serde(default)]
    pub total_progress: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// An image that QEMU has open.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NamedNode {
    /// QEMU's name of the node.
    #[serde(default)]
    pub node_name: String,
    #[serde(deserialize_with = "file_name")]
    pub file: PathBuf,
    /// The driver; `file` for the node below a format.
    pub drv: String,
}

impl NamedNode {
    /// Whether it is the node of an image, and not of the bare file below it or of a filter above.
    pub fn is_image(&self) -> bool {
        matches!(self.drv.as_str(), "raw" | "qcow2" | "qcow" | "qed" | "vpc")
    }
}

/// A merge of two images, as QEMU does it.
#[derive(Debug, Clone, Copy)]
pub struct Nodes<'a> {
    /// The node that the guest's disk has.
    pub root: &'a str,
    /// The image above.
    pub top: &'a str,
    /// The image below: what is merged into. Of a stream, the image that the top rests on afterwards.
    pub base: Option<&'a str>,
    /// The same of a stream by its file, which QEMU looks for below the top.
    pub base_file: Option<&'a Path>,
    /// What images above are to name as the one below them.
    pub backing_file: Option<&'a Path>,
}

impl<S: Read + Write> Qmp<S> {
    /// The jobs that there are.
    pub fn jobs(&mut self) -> Result<Vec<Job>, QmpError> {
        self.execute(&query_jobs {})
    }

    /// The images that are open.
    pub fn named_nodes(&mut self) -> Result<Vec<NamedNode>, QmpError> {
        self.execute(&query_named_block_nodes { flat: Some(true) })
    }

    /// Begins to write what an image holds into the one below it.
    #[expect(deprecated, reason = "the type has the old fields too")]
    pub fn commit(&mut self, id: &str, nodes: Nodes<'_>) -> Result<(), QmpError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let _: IgnoredAny = self.execute(&block_commit {
            auto_dismiss: Some(false),
            auto_finalize: None,
            backing_file: nodes.backing_file.map(text),
            backing_mask_protocol: None,
            base: None,
            base_node: nodes.base.map(str::to_owned),
            filter_node_name: None,
            job_id: Some(id.to_owned()),
            on_error: Some(BlockdevOnError::report),
            speed: None,
            top: None,
            top_node: Some(nodes.top.to_owned()),
            device: nodes.root.to_owned(),
        })?;
        Ok(())
    }

    /// Begins to read what lies below an image into it, down to its new base.
    pub fn stream(&mut self, id: &str, nodes: Nodes<'_>) -> Result<(), QmpError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let _: IgnoredAny = self.execute(&block_stream {
            auto_dismiss: Some(false),
            auto_finalize: None,
            backing_file: nodes.backing_file.map(text),
            backing_mask_protocol: None,
            base: nodes.base_file.map(text),
            base_node: nodes.base.map(str::to_owned),
            bottom: None,
            filter_node_name: None,
            job_id: Some(id.to_owned()),
            on_error: Some(BlockdevOnError::report),
            speed: None,
            device: nodes.top.to_owned(),
        })?;
        Ok(())
    }

    /// Has a job that is ready switch the guest's disk.
    pub fn complete_job(&mut self, id: &str) -> Result<(), QmpError> {
        let _: IgnoredAny = self.execute(&job_complete { id: id.to_owned() })?;
        Ok(())
    }

    /// Has a job end, whatever it has done.
    pub fn cancel_job(&mut self, id: &str) -> Result<(), QmpError> {
        let _: IgnoredAny = self.execute(&job_cancel { id: id.to_owned() })?;
        Ok(())
    }

    /// Takes a job that has ended off the list.
    pub fn dismiss_job(&mut self, id: &str) -> Result<(), QmpError> {
        let _: IgnoredAny = self.execute(&job_dismiss { id: id.to_owned() })?;
        Ok(())
    }

    /// Closes an image that no disk has any more.
    pub fn delete_node(&mut self, node: &str) -> Result<(), QmpError> {
        let _: IgnoredAny = self.execute(&blockdev_del { node_name: node.to_owned() })?;
        Ok(())
    }

    /// Deletes the internal snapshot that has this ID and name. QEMU does nothing else meanwhile, however
    /// long that takes.
    pub fn delete_internal_by_id(
        &mut self,
        node: &str,
        (id, name): (&str, &str),
    ) -> Result<(), QmpError> {
        let command = blockdev_snapshot_delete_internal_sync {
            device: node.into(),
            id: Some(id.into()),
            name: Some(name.into()),
        };
        self.send::<blockdev_snapshot_delete_internal_sync>(&request(&command)?)?;
        let _: IgnoredAny = self.answer::<blockdev_snapshot_delete_internal_sync, _>(
            &mut Patience::WhileItLives(None),
        )?;
        Ok(())
    }
}
