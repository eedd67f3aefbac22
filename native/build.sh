#!/bin/sh
# Builds the NIF and puts it at priv/libchatter_nif.so. rebar3 calls this before it compiles
# (pre_hooks in rebar.config), also when Chatter is a dependency of another project.
#
#   CHATTER_NATIVE_PROFILE  cargo profile: release (the default) or dev
#   CHATTER_NATIVE_LIB      a library that is built already: it is installed, cargo is not run
set -eu
cd "$(dirname "$0")/.."
profile=${CHATTER_NATIVE_PROFILE:-release}
installed=priv/libchatter_nif.so # erlang:load_nif/2 adds ".so" on every Unix, macOS too

say() { echo "chatter: $*" >&2; }

if [ -n "${CHATTER_NATIVE_LIB:-}" ]; then
    built=$CHATTER_NATIVE_LIB
    [ -f "$built" ] || { say "CHATTER_NATIVE_LIB names no file: $built"; exit 1; }
else
    PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    command -v cargo >/dev/null 2>&1 || {
        say "cargo is missing: install Rust 1.93 or newer (https://rustup.rs)," \
            "or set CHATTER_NATIVE_LIB to a ready library"
        exit 1
    }
    cargo build --quiet --locked --package chatter-nif --profile "$profile"
    case $profile in dev) subdir=debug ;; *) subdir=$profile ;; esac
    case $(uname) in Darwin) suffix=dylib ;; *) suffix=so ;; esac
    built=${CARGO_TARGET_DIR:-target}/$subdir/libchatter_nif.$suffix
fi

# An unchanged library stays as it is. A changed one is renamed into place, because writing
# into a file that a running node has mapped would crash that node.
if ! cmp -s "$built" "$installed"; then
    mkdir -p priv
    cp "$built" "$installed.$$"
    mv -f "$installed.$$" "$installed"
fi
