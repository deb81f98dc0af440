//! x
mod client;
mod endpoint;
mod proto;
mod tls;
mod wire;
pub use tls::TlsFiles;
