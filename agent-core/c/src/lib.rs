//! The C interface of [`agent_core`]: what `include/agent_core.h` declares, which also says what each function does.
//!
//! Every entry catches panics, answers with a code and a text (`error.rs`), and reads nothing through a pointer that may be
//! null. What a program gives and gets are opaque handles, texts that end in NUL, and descriptors. The header is written by
//! hand; `tests/header.rs` compares it with these sources and with the symbols of the library.
//!
//! Pointers of a C program can be had in no other way: this crate is the second room where `unsafe` may stand, beside
//! `sys`.

#![allow(unsafe_code)]

mod agent;
mod error;
mod intake;
mod kinds;
mod operations;
mod text;
