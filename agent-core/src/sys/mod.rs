//! Every raw system call of the workspace, and every `unsafe`: safe functions that take owned or borrowed
//! descriptors. Kernel differences stay in here.

#![allow(unsafe_code)]

pub mod socket;
