//! What the operator typed: one file a command. Each turns its flags into a call of the library and the result into
//! text or JSON; none decides anything.
//!
//! `client` asks the manager and `daemon` this host's mount daemon; `out` and `progress` are how it looks; `manual` makes help, man pages and `docs/command-line.md` out of one source.

mod adapter;
mod agents;
mod api_token;
mod archive;
mod attach;
mod client;
mod completions;
mod crossing;
mod daemon;
mod demo;
mod diff;
mod enroll;
mod exec;
mod export;
mod gc;
mod generations;
mod group;
mod hosts;
mod interrupt;
mod job;
mod launch;
mod log;
mod man;
pub mod manual;
mod mount;
mod near;
pub(crate) mod out;
mod peer;
mod permits;
mod policy;
mod profile;
pub(crate) mod progress;
mod protection;
mod publish;
mod record;
mod recover;
mod remote;
mod repository;
mod repository_key;
mod rescue;
mod rollout;
mod serve;
mod started;
mod status;
mod status_text;
mod store;
mod token;
mod traced;
mod unmount;
mod upgrade;
mod verify;

use std::process::ExitCode;
use std::time::Duration;

use clap::{FromArgMatches, Parser, Subcommand};

use crate::config::{Dirs, GlobalFlags};
use crate::host::adapter::Keep;
use crate::units;
use out::note;
use remote::Remote;

/// Serves versioned executable trees to hosts, and changes their running agents' versions.
#[derive(Debug, Parser)]
#[command(name = "manager-fs", version, max_term_width = 100)]
struct Line {
    #[command(flatten)]
    global: GlobalFlags,
    #[command(flatten)]
    remote: Remote,
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
    Diff(diff::DiffArgs),
    /// Check every byte of the store
    Verify(verify::VerifyArgs),
    /// Remove from the store what nothing needs
    Gc(gc::GcArgs),
    /// Show and remove records of the manager that cannot be read
    #[command(subcommand)]
    Record(record::RecordCommand),
    /// Build the manager's control state anew when it is damaged or gone; no manager may run meanwhile
    Recover(recover::RecoverArgs),
    /// Back the manager up, and put a backup back
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Copy generations into a file for a manager that no network reaches
    Save(crossing::SaveArgs),
    /// Take generations in that another manager saved, verified against its signed records
    Load(crossing::LoadArgs),
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
    Token(token::TokenArgs),
    /// Who may use the HTTP interface and the console of the manager
    #[command(subcommand)]
    ApiToken(api_token::ApiTokenCommand),
    /// Enrol this host with a manager
    Enroll(enroll::EnrollArgs),
    /// Tell running agents to change over to another generation, in either direction
    Upgrade(upgrade::UpgradeArgs),
    /// A new version for many hosts, by a plan that stops itself
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// Show what runs where, since when, and why it last changed
    Agents(agents::AgentsArgs),
    /// What is backed up where, when, and kept how long
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Show of each source the newest good backup, and what is at risk: exit code 3 if anything is
    Protection(protection::ProtectionArgs),
    /// Run and follow storage operations
    #[command(subcommand)]
    Job(Box<job::JobCommand>),
    /// Repositories that media agents serve to other hosts
    #[command(subcommand)]
    Repository(repository::RepositoryCommand),
    /// Start a product's agent, watch it, and return it to the last good version if need be
    Launch(launch::LaunchArgs),
    /// Put an agent that does not come up on a generation by hand, offline; its next launch starts that
    Rescue(rescue::RescueArgs),
    /// What this host's administrator allows to be ordered here
    #[command(subcommand)]
    Permits(permits::PermitsCommand),
    /// Run the mount daemon of this host; it shows every generation that is exported to it
    Mount(mount::MountArgs),
    #[command(name = "__adapter", hide = true)]
    Adapter(adapter::AdapterArgs),
    #[command(name = "__keep", hide = true)]
    Keep(Keep),
    #[command(name = "__worker", hide = true)]
    Worker(mount::MountArgs),
    #[command(name = "__helper", hide = true)]
    Helper(mount::MountArgs),
    /// Attach a generation on this host and keep it; prints the path of its tree
    Attach(attach::AttachArgs),
    /// Drop what attach keeps
    Release(attach::ReleaseArgs),
    /// Run a program straight from a generation
    Exec(exec::ExecArgs),
    /// Record on this host what a start of a generation touches first, so that other hosts start faster
    Profile(profile::ProfileArgs),
    #[command(name = "__profile-mount", hide = true)]
    ProfileMount(profile::ProfileMountArgs),
    #[command(name = "__profile-worker", hide = true)]
    ProfileWorker(profile::ProfileMountArgs),
    /// Show what the mount daemon of this host does; never blocks
    Status(status::StatusArgs),
    /// End the mount daemon of this host
    Unmount(unmount::UnmountArgs),
    /// All of the other commands on this machine, in front of your eyes
    Demo(demo::DemoOptions),
    /// Print what makes a shell complete these commands
    Completions(completions::CompletionsArgs),
    /// Write the manual pages of all commands
    Man(man::ManArgs),
}

/// Where a command works, and how long it waits for others.
#[derive(Debug)]
struct Here {
    dirs: Dirs,
    /// How long the manager or the mount daemon may give no sign of life.
    silence: Duration,
    /// Where the manager is, if it is not on this machine.
    remote: Remote,
}

/// The flag of every command that prints.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Json {
    /// Print one JSON document and nothing else on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Exit code 0.
    Clean,
    /// Exit code 3: done, with problems that were printed.
    WithProblems,
    /// The exit code of the program that was run (`exec`), or 1 where the answer says what failed.
    Code(u8),
}

/// Ctrl-C, while somebody else does the work: what becomes of it, for people; empty where it needs no word.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Interrupted(String);

/// As a shell says of a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Parses the command line, runs the command, prints the error. Wrong usage is exit code 2 (clap's own).
pub fn run() -> ExitCode {
    let typed = manual::parser().get_matches();
    // The parser is made of the same type.
    let line = Line::from_arg_matches(&typed).unwrap_or_else(|error| error.exit());
    let done = Dirs::resolve(&line.global).map_err(anyhow::Error::from);
    let silence = line.global.silence;
    let done = done.and_then(|dirs| dispatch(line.command, &Here { dirs, silence, remote: line.remote }));
    match done.and_then(|done| out::finish().map(|()| done)) {
        Ok(Done::Clean) => ExitCode::SUCCESS,
        Ok(Done::WithProblems) => ExitCode::from(3),
        Ok(Done::Code(code)) => ExitCode::from(code),
        Err(error) => match error.downcast_ref::<Interrupted>() {
            Some(Interrupted(text)) => {
                if !text.is_empty() {
                    note!("interrupted; {text}");
                }
                ExitCode::from(INTERRUPTED)
            }
            None => {
                note!("{error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn dispatch(command: Command, here: &Here) -> anyhow::Result<Done> {
    here.remote.allows(&command)?;
    let dirs = &here.dirs;
    match command {
        Command::Serve(args) => serve::run(&args, dirs),
        Command::Publish(args) => publish::publish(&args, here),
        Command::Unpublish(args) => publish::unpublish(&args, here),
        Command::Generations(args) => generations::generations(&args, here),
        Command::Show(args) => generations::show(&args, here),
        Command::Diff(args) => diff::diff(&args, here),
        Command::Verify(args) => verify::verify(&args, here),
        Command::Gc(args) => gc::gc(&args, here),
        Command::Record(command) => record::run(&command, here),
        Command::Recover(args) => recover::run(&args, dirs),
        Command::Store(command) => store::run(&command, here),
        Command::Save(args) => crossing::save(&args, here),
        Command::Load(args) => crossing::load(&args, here),
        Command::Export(args) => export::export(&args, here),
        Command::Unexport(args) => export::unexport(&args, here),
        Command::Hosts(args) => hosts::hosts(&args, here),
        Command::Host(command) => hosts::host(&command, here),
        Command::Token(args) => token::token(&args, here),
        Command::ApiToken(command) => api_token::run(&command, here),
        Command::Enroll(args) => enroll::enroll(&args, dirs),
        Command::Upgrade(args) => upgrade::upgrade(&args, here),
        Command::Rollout(command) => rollout::run(&command, here),
        Command::Agents(args) => agents::agents(&args, here),
        Command::Policy(command) => policy::run(&command, here),
        Command::Protection(args) => protection::run(&args, here),
        Command::Job(command) => job::run(&command, here),
        Command::Repository(command) => repository::run(&command, here),
        Command::Launch(args) => launch::run(&args, here),
        Command::Rescue(args) => rescue::run(&args, dirs),
        Command::Permits(command) => permits::run(&command, dirs),
        Command::Mount(args) => mount::mount(&args, dirs),
        Command::Adapter(args) => adapter::adapter(&args),
        Command::Keep(args) => adapter::keep(&args),
        Command::Worker(args) => mount::worker(args, dirs),
        Command::Helper(args) => mount::helper(&args, dirs),
        Command::Attach(args) => attach::attach(&args, here),
        Command::Release(args) => attach::release(&args, here),
        Command::Exec(args) => match &args.trace {
            Some(image) => traced::run(&args, image, here),
            None => exec::exec(&args, here),
        },
        Command::Profile(args) => profile::run(&args, here),
        Command::ProfileMount(args) => profile::mount(&args, dirs),
        Command::ProfileWorker(args) => profile::worker(&args, dirs),
        Command::Status(args) => status::status(&args, here),
        Command::Unmount(args) => unmount::unmount(&args, here),
        Command::Demo(options) => demo::run(&options),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}
