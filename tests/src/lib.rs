//! A manager and its hosts on one machine, driven through the built programs as an operator would, each with its own
//! directories. Everything that a test starts is ended when it goes out of scope, also when the test fails.

// A test fails by panicking; here a message with the cause is the way to report it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod browser;
pub mod choices;
pub mod clock;
pub mod command;
pub mod damage;
pub mod dice;
pub mod faults;
pub mod fleet;
pub mod languages;
pub mod load;
pub mod needs;
pub mod noise;
pub mod operator;
pub mod power;
pub mod proxy;
pub mod real;
pub mod repository;
pub mod site;
pub mod sources;
pub mod storages;
pub mod tools;
pub mod tree;
pub mod vault;
pub mod web;

pub use clock::Clock;
pub use command::Output;
pub use faults::Faults;
pub use fleet::{Host, Manager};
pub use noise::noise;
pub use proxy::Proxy;
pub use site::Site;
pub use tree::{TreeFixture, files_below};
