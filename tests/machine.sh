# shellcheck shell=bash
# What this machine has and lacks, for `tests/run` and `tests/demo`, which read this file: programs are installed where
# that is possible, and otherwise named in one list with the way to get them.

say() { printf '%s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# rustup puts cargo here; a shell that was open before does not have it on its PATH yet.
have cargo || PATH="$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin"

# Servers are there, which is not on the PATH of everybody.
PATH="$PATH:/usr/sbin"

# wants PROGRAM PACKAGE WHY: notes a program that is missing.
wanted=()
reasons=()
wants() {
    if ! have "$1"; then
        wanted+=("$2")
        reasons+=("$1 (Debian and Ubuntu: $2): $3")
    fi
}

wants_to_build() {
    wants cc build-essential "a C compiler, for libraries that are built with this project"
    wants tar tar "packs what is published"
}

wants_to_test() {
    wants restic restic "reads the repositories that the reference agent writes"
    wants xz xz-utils "packs archives that are published"
    wants zstd zstd "packs archives that are published"
    wants perl perl-base "a real program with modules, run from a mount"
    wants curl curl "asks a service that changes its version"
    wants mount mount "puts a full disk under a store, in a namespace"
    wants diff diffutils "compares what was restored"
    wants strace strace "records what is written, for power cuts"
    wants make make "builds the example in C"
    wants pkg-config pkg-config "finds the C library for it"
    wants valgrind valgrind "watches the memory of a program in C"
    wants python3 python3-venv "runs the example in Python"
    wants sshd openssh-server "is a server of SFTP on which repositories lie"
    wants ssh openssh-client "reaches it"
    wants rclone rclone "is a REST server in which repositories lie"
    wants unshare util-linux "makes the namespaces in which tests without root mount"
}

# Servers of S3 that tests start are in no package of the system: they lie in an environment of their own, once for this
# user. Where it cannot be made, the tests that want it say so.
provide_tools() {
    local dir=${XDG_CACHE_HOME:-$HOME/.cache}/manager-fs-tests/tools-2
    if [ -e "$dir/complete" ] || ! have python3; then return; fi
    say "installing servers of S3 and a prober of HTTP interfaces for tests into $dir"
    rm -rf "$dir"
    if python3 -m venv "$dir" >&2 && "$dir/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
        'moto[s3]==5.2.5' flask flask-cors localbucket==1.2.1 schemathesis==4.32.5 >&2; then
        touch "$dir/complete"
    else
        say "they cannot be installed; tests that want them will be listed"
    fi
}

# A browser is a large thing, and no package of every system: where root cannot install it from packages, the tests that
# want it are listed.
provide_browser() {
    if have chromium && have chromedriver; then return; fi
    if [ "$(id -u)" = 0 ] && have apt-get; then
        say "installing chromium and chromium-driver"
        apt-get update -qq >&2 || true
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver \
            >/dev/null || true
        hash -r
    fi
    have chromedriver || say "there is no chromium with its chromedriver; tests that want it will be listed"
}

# Installs what is wanted, by apt as root or by way of sudo; otherwise says all that is missing, and ends with 2.
provide() {
    local as_root=() left=()
    if [ ${#wanted[@]} -gt 0 ] && have apt-get; then
        if [ "$(id -u)" != 0 ]; then
            # A sudo that would ask for a password may do so only where somebody can answer.
            if have sudo && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then as_root=(sudo); else as_root=(false); fi
        fi
        if [ "${as_root[*]}" != false ]; then
            say "installing ${wanted[*]}"
            "${as_root[@]}" apt-get update -qq >&2 || true
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null || true
            hash -r
        fi
    fi
    local n
    for n in "${!wanted[@]}"; do
        have "${reasons[$n]%% *}" || left+=("$n")
    done
    if [ ${#left[@]} = 0 ] && have cargo; then return; fi
    local packages=()
    say "This machine lacks:"
    for n in "${left[@]}"; do
        say "  ${reasons[$n]}"
        packages+=("${wanted[$n]}")
    done
    [ ${#packages[@]} = 0 ] || say "Install them as root, then go on: apt-get install ${packages[*]}"
    have cargo || say "  cargo: install Rust with rustup, as https://rustup.rs says"
    exit 2
}
