//! What `--dry-run` prints.

use serde::Serialize;

use crate::plan::{Plan, Step};

/// What `--dry-run` prints as JSON. Its form is a contract; the words of the steps are not.
#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    /// What the plan is for.
    pub title: String,
    /// Steps that can be undone.
    pub prepare: Vec<String>,
    /// The step that makes it real, if there is one.
    pub commit: Vec<String>,
    /// What must follow it.
    pub onward: Vec<String>,
    /// What ends it.
    pub finish: Vec<String>,
    /// What `--clean` removes before.
    pub clean: Vec<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl From<&Plan> for Planned {
    fn from(plan: &Plan) -> Self {
        let words = |steps: &[Step]| steps.iter().map(ToString::to_string).collect();
        Planned {
            title: plan.title.clone(),
            prepare: words(&plan.prepare),
            commit: words(plan.commit.as_slice()),
            onward: words(&plan.onward),
            finish: words(&plan.finish),
            clean: Vec::new(),
            notes: plan.notes.clone(),
        }
    }
}

impl Planned {
    /// The same plan, once that of `--clean` has been carried out.
    #[must_use]
    pub fn after(self, clean: &Plan) -> Self {
        Planned { clean: Planned::from(clean).finish, ..self }
    }
}
