//! The steps that export a snapshot.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::guarded::started;
use super::state::{Dom0, caused, failed};
use crate::error::{Error, Result};
use crate::host::command;
use crate::host::deletion::steps::allocated;
use crate::host::export::steps::{Hands, Made};
use crate::plan::export::Export;
use crate::tool::Invocation;

impl Dom0 {
    pub(super) fn export(&mut self, step: &Export) -> Result<()> {
        let what = match step {
            Export::Disk(_) => "copying a disk",
            Export::Memory(_) => "compressing memory",
            _ => "sending",
        };
        let meter = match step {
            Export::Disk(_) | Export::Memory(_) | Export::Send { .. } => {
                Some(self.reporter.meter(what))
            }
            _ => None,
        };
        let show = |done, total| {
            if let Some(meter) = &meter {
                meter.show(None, done, total);
            }
        };
        let stopped = || self.stop.load(Ordering::Acquire);
        let started = started(self.guard.as_ref());
        let mut run = |call: &Invocation, grows: Option<(&Path, u64)>| {
            let nothing = File::open("/dev/null").map_err(failed("Open /dev/null"))?;
            let mut told = false;
            let mut meanwhile = |pid: u32| {
                if let Some((path, most)) = grows {
                    show(allocated(path).min(most), most);
                }
                // Only its own new file is lost.
                if stopped() && !told {
                    told = true;
                    let pid = i32::try_from(pid).map(Pid::from_raw);
                    // It may just have ended.
                    let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
                }
            };
            let result = command::run_on(call, nothing, &mut meanwhile, &started);
            match result {
                Err(_) if stopped() => {
                    Err(Error::failed("Stopped by a signal").hint("run the command again"))
                }
                result => result.map_err(caused),
            }
        };
        let mut hands = Hands {
            run: &mut run,
            show: &mut |done, total| show(done, total),
            stopped: &stopped,
            source: self.source.as_mut(),
        };
        self.exporter.perform(step, &mut hands)
    }

    /// What the export has made.
    pub fn exported(&self) -> &Made {
        &self.exporter.made
    }
}
