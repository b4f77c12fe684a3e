//! Exports: looking at what one needs, and the steps that make one. The steps need no domain.

pub mod look;
mod place;
mod stdout;
pub mod steps;
