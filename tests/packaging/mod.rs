//! What is shipped beside the binary, and the repository itself.

/// Units, images, manifests.
mod deploy;
/// The commands on the pages.
mod readme;
/// Tests/scenarios.md.
mod scenarios;
/// The walls between the rooms of the code.
mod walls;
