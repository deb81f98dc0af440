//! The fault catalogue on real namespaces: hosts of the lab with real agents and pods, traffic that never stops,
//! one fault after the other, and what each cost beside what is promised.
//!
//! Three parts that do not know each other's inside: the table says what is done and promised ([`table::FAULTS`]),
//! a scene does it and looks ([`scene::Scene`], [`traffic::Traffic`]), and a judgement is a function of what was seen
//! ([`promise::judge`]). How to run it: `docs/guide/faults.md`; why it is so: `docs/decisions/0190-fault-runner.md`.

pub mod account;
pub mod fast;
pub mod inject;
pub mod picture;
pub mod promise;
pub mod report;
pub mod run;
pub mod scene;
pub mod soak;
pub mod table;
pub mod traffic;

/// What goes wrong with the runner itself, in one sentence.
pub type Result<T> = std::result::Result<T, String>;
