//! Reverts executed on a host where every step fails once.

use super::volumes::found_volumes;
use super::*;
use crate::model::Guest;
use crate::plan::faults::try_every_fault;

fn every_fault(found: &RevertInput, options: Options) {
    let guest = if found.same.is_some() { Guest::Runs } else { Guest::Gone };
    assert!(try_every_fault(&plan(found, options).unwrap().plan, guest) > 10);
}

#[test]
fn every_fault_of_a_revert() {
    let mut gone = found();
    gone.same = None;
    gone.named = None;
    for found in [found(), gone, found_volumes(136 << 20), found_volumes(0)] {
        for discard_current in [false, true] {
            for paused in [false, true] {
                let options = Options { paused, discard_current };
                if plan(&found, options).is_ok() {
                    every_fault(&found, options);
                }
            }
        }
    }
}
