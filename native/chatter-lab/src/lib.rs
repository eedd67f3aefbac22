//! An Ethernet switch in user space for the network laboratory (docs/testing.md): every port is a
//! TAP device, and every directed pair of ports loses, delays, repeats, reorders and cuts as told.
//!
//! [`fabric`] decides, with time and a seed as arguments; [`frame`] reads and changes frames;
//! [`command`] reads the lines that control it; [`tap`] has the system calls. `main.rs` is the loop.

pub mod command;
pub mod fabric;
pub mod frame;
pub mod tap;
