//! What is handed out beside the programs: container images, bills of materials, manual and completions, manifests, the chart.
//! Nothing here is linked into a program.

pub mod chart;
pub mod image;
pub mod sbom;
pub mod share;
pub mod tar;
pub mod template;
pub mod yaml;

/// Every error here ends the command, and is told in one sentence.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
