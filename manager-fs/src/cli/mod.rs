//! What the operator typed: one file a command. Each turns its flags into a call of the library and the result into
//! text or JSON; none decides anything.

mod client;
mod exec;
mod export;
mod generations;
mod hosts;
mod job;
mod launch;
mod local;
mod log;
mod mount;
pub(crate) mod out;
mod profile;
mod publish;
mod serve;
mod status_text;
mod upgrade;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{DirFlags, Dirs};
use crate::demo::DemoOptions;

/// Serves versioned executable trees to hosts, and changes their running agents' versions.
#[derive(Debug, Parser)]
#[command(name = "manager-fs", version, max_term_width = 100)]
struct Line {
    #[command(flatten)]
    dirs: DirFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the manager
    Serve(serve::ServeArgs),
    /// Take files in as a new generation of a product
    Publish(publish::PublishArgs),
    /// Take a generation back that is neither exported nor attached
    Unpublish(publish::UnpublishArgs),
    /// List generations
    Generations(generations::GenerationsArgs),
    /// Show one generation with its metadata
    Show(generations::ShowArgs),
    /// Show what differs between two generations
    Diff(generations::DiffArgs),
    /// Check every byte of the store
    Verify(generations::VerifyArgs),
    /// Remove from the store what nothing needs
    Gc(generations::GcArgs),
    /// Let hosts see and fetch a generation
    Export(export::ExportArgs),
    /// Take an export back
    Unexport(export::UnexportArgs),
    /// List hosts
    Hosts(hosts::HostsArgs),
    /// Revoke and group hosts
    #[command(subcommand)]
    Host(hosts::HostCommand),
    /// Print a one-time token that enrols a host
    Token(hosts::TokenArgs),
    /// Enrol this host with a manager
    Enroll(hosts::EnrollArgs),
    /// Tell running agents to change over to another generation, in either direction
    Upgrade(upgrade::UpgradeArgs),
    /// Show what runs where, since when, and why it last changed
    Agents(upgrade::AgentsArgs),
    /// Run and follow storage operations
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Start a product's agent, watch it, and return it to the last good version if need be
    Launch(launch::LaunchArgs),
    /// The mount daemon of this host; shows every generation that is exported to it
    Mount(mount::MountArgs),
    #[command(name = "__worker", hide = true)]
    Worker(mount::MountArgs),
    #[command(name = "__helper", hide = true)]
    Helper(mount::MountArgs),
    /// Attach a generation on this host and keep it; prints the path of its tree
    Attach(local::AttachArgs),
    /// Drop what attach keeps
    Release(local::ReleaseArgs),
    /// Run a program straight from a generation
    Exec(exec::ExecArgs),
    /// Record on this host what a start of a generation touches first, so that other hosts start faster
    Profile(profile::ProfileArgs),
    #[command(name = "__profile-mount", hide = true)]
    ProfileMount(profile::ProfileMountArgs),
    #[command(name = "__profile-worker", hide = true)]
    ProfileWorker(profile::ProfileMountArgs),
    /// What the mount daemon of this host does; never blocks
    Status(local::StatusArgs),
    /// End the mount daemon of this host
    Unmount,
    /// All of the other commands on this machine, in front of your eyes
    Demo(DemoOptions),
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Exit code 0.
    Clean,
    /// Exit code 3: done, with problems that were printed.
    WithProblems,
    /// The exit code of the program that was run (`exec`).
    Code(u8),
}

/// Parses the command line, runs the command, prints the error. Wrong usage is exit code 2 (clap's own).
pub fn run() -> ExitCode {
    let line = Line::parse();
    let done = Dirs::resolve(&line.dirs).and_then(|dirs| dispatch(line.command, &dirs));
    match done.and_then(|done| out::finish().map(|()| done)) {
        Ok(Done::Clean) => ExitCode::SUCCESS,
        Ok(Done::WithProblems) => ExitCode::from(3),
        Ok(Done::Code(code)) => ExitCode::from(code),
        Err(error) => {
            eprintln!("manager-fs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, dirs: &Dirs) -> anyhow::Result<Done> {
    match command {
        Command::Serve(args) => serve::run(&args, dirs),
        Command::Publish(args) => publish::publish(&args, dirs),
        Command::Unpublish(args) => publish::unpublish(&args, dirs),
        Command::Generations(args) => generations::generations(&args, dirs),
        Command::Show(args) => generations::show(&args, dirs),
        Command::Diff(args) => generations::diff(&args, dirs),
        Command::Verify(args) => generations::verify(&args, dirs),
        Command::Gc(args) => generations::gc(&args, dirs),
        Command::Export(args) => export::export(&args, dirs),
        Command::Unexport(args) => export::unexport(&args, dirs),
        Command::Hosts(args) => hosts::hosts(&args, dirs),
        Command::Host(command) => hosts::host(&command, dirs),
        Command::Token(args) => hosts::token(&args, dirs),
        Command::Enroll(args) => hosts::enroll(&args, dirs),
        Command::Upgrade(args) => upgrade::upgrade(&args, dirs),
        Command::Agents(args) => upgrade::agents(&args, dirs),
        Command::Job(command) => job::run(&command, dirs),
        Command::Launch(args) => launch::run(&args, dirs),
        Command::Mount(args) => mount::mount(args, dirs),
        Command::Worker(args) => mount::worker(args, dirs),
        Command::Helper(args) => mount::helper(args, dirs),
        Command::Attach(args) => local::attach(args, dirs),
        Command::Release(args) => local::release(args, dirs),
        Command::Exec(args) => exec::exec(args, dirs),
        Command::Profile(args) => profile::run(&args, dirs),
        Command::ProfileMount(args) => profile::mount(&args, dirs),
        Command::ProfileWorker(args) => profile::worker(&args, dirs),
        Command::Status(args) => local::status(args, dirs),
        Command::Unmount => local::unmount(dirs),
        Command::Demo(options) => Ok(if crate::demo::run(&options)? { Done::Clean } else { Done::Code(1) }),
    }
}
