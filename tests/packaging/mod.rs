//! What is shipped beside the binary, and the repository itself.

/// Units, images, manifests.
mod deploy;
/// README, docs/ and the rest.
mod pages;
/// Tests/scenarios.md.
mod scenarios;
/// The walls between the rooms of the code.
mod walls;
