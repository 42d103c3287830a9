//! `job backup`: how it is done.

use std::time::Duration;

use clap::Args;
use proto::agent::{Operation, Repository};
use proto::backup::BackupOptions;
use proto::means::{Commands, Pace};
use proto::{CommandName, width};

use super::super::units::byte_count;

/// The highest level that zstd has.
const LEVEL_MAX: u8 = 22;
/// What restic calls its best: more costs much memory for little.
const LEVEL_BEST: u8 = 19;

/// What is left out of a backup, and how it is done.
#[derive(Debug, Args)]
pub(in crate::cli) struct How {
    /// Leave out what matches, as in a .gitignore (the last pattern decides, ! takes back, / at the beginning means the
    /// host's root); may be given several times
    #[arg(short, long, value_name = "PATTERN", help_heading = "What is left out")]
    exclude: Vec<String>,
    /// The same, from a file on the host with a pattern a line; may be given several times
    #[arg(long, value_name = "FILE", help_heading = "What is left out")]
    exclude_file: Vec<String>,
    /// Of directories in which a file of this name lies (and begins with TEXT) take only that file
    #[arg(long, value_name = "NAME[:TEXT]", help_heading = "What is left out")]
    exclude_if_present: Vec<String>,
    /// The same of directories with a CACHEDIR.TAG
    #[arg(long, help_heading = "What is left out")]
    exclude_caches: bool,
    /// Leave out larger files
    #[arg(long, value_name = "SIZE", value_parser = byte_count, help_heading = "What is left out")]
    exclude_larger_than: Option<u64>,
    /// Do not enter other file systems below a source
    #[arg(short = 'x', long, help_heading = "What is left out")]
    one_file_system: bool,
    /// Make one snapshot of all sources, not one each
    #[arg(long)]
    together: bool,
    /// Give the snapshots this tag, too; may be given several times
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Read and count everything, store nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Read every file, also those that seem to be unchanged
    #[arg(short, long)]
    force: bool,
    /// How many threads read [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    read_concurrency: Option<u8>,
    /// auto (as the repository says), off, max, or a level of zstd from 1 to 22
    #[arg(long, value_name = "LEVEL", default_value = "auto", value_parser = compression)]
    compression: Compression,
    /// Back up what a command prints, as one file: a name by which the host's permits.toml knows it
    #[arg(long, value_name = "COMMAND", conflicts_with = "sources", help_heading = "Commands of the host's")]
    stdin_from_command: Option<CommandName>,
    /// The path that its output has in the snapshot
    #[arg(long, value_name = "PATH", default_value = "/stdin", help_heading = "Commands of the host's")]
    stdin_filename: String,
    /// Run this command before each snapshot; if it fails, none is made
    #[arg(long, value_name = "COMMAND", help_heading = "Commands of the host's")]
    before: Option<CommandName>,
    /// Run this command after each, however it ended
    #[arg(long, value_name = "COMMAND", help_heading = "Commands of the host's")]
    after: Option<CommandName>,
    /// How long each command may take
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration,
        help_heading = "Commands of the host's")]
    command_deadline: Duration,
    /// Read no more than this of the sources in a second
    #[arg(long, value_name = "SIZE", value_parser = byte_count, help_heading = "How fast")]
    limit_read: Option<u64>,
    /// Write no more than this to the repository in a second
    #[arg(long, value_name = "SIZE", value_parser = byte_count, help_heading = "How fast")]
    limit_upload: Option<u64>,
    /// Read no more than this of the repository in a second
    #[arg(long, value_name = "SIZE", value_parser = byte_count, help_heading = "How fast")]
    limit_download: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Compression(Option<u8>);

fn compression(text: &str) -> Result<Compression, String> {
    let level = match text {
        "auto" => None,
        "off" => Some(0),
        "max" => Some(LEVEL_BEST),
        number => match number.parse() {
            Ok(level @ 1..=LEVEL_MAX) => Some(level),
            _ => return Err(format!("want auto, off, max, or a number from 1 to {LEVEL_MAX}")),
        },
    };
    Ok(Compression(level))
}

impl How {
    /// The oldest operation that says all of it.
    pub(super) fn operation(&self, repository: Repository, sources: Vec<String>) -> Operation {
        let (options, commands, pace) = (self.options(), self.commands(), self.pace());
        let sources = if commands.output_of.is_some() { vec![self.stdin_filename.clone()] } else { sources };
        if commands.are_none() && pace == Pace::default() {
            return Operation::BackupWith { repository, sources, options };
        }
        Operation::BackupBy { repository, sources, options, commands, pace }
    }

    fn commands(&self) -> Commands {
        Commands {
            output_of: self.stdin_from_command.clone(),
            before: self.before.clone(),
            after: self.after.clone(),
            seconds: width::count(self.command_deadline.as_secs()),
        }
    }

    fn pace(&self) -> Pace {
        Pace { read: self.limit_read, upload: self.limit_upload, download: self.limit_download }
    }

    fn options(&self) -> BackupOptions {
        BackupOptions {
            exclude: self.exclude.clone(),
            exclude_files: self.exclude_file.clone(),
            exclude_if_present: self.exclude_if_present.clone(),
            exclude_caches: self.exclude_caches,
            exclude_larger_than: self.exclude_larger_than,
            one_file_system: self.one_file_system,
            together: self.together,
            tags: self.tag.clone(),
            dry_run: self.dry_run,
            force: self.force,
            readers: self.read_concurrency,
            compression: self.compression.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_of_compression_is_a_word_or_a_number() {
        for (text, level) in [("auto", None), ("off", Some(0)), ("max", Some(19)), ("1", Some(1)), ("22", Some(22))] {
            assert_eq!(compression(text), Ok(Compression(level)));
        }
        for wrong in ["", "0", "23", "-1", "best"] {
            assert!(compression(wrong).is_err(), "{wrong}");
        }
    }
}
