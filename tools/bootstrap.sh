#!/usr/bin/env bash
# Makes this machine ready for what a make target needs. Called by the Makefile; quick and silent
# when nothing is missing.
#
#   tools/bootstrap.sh [venv] [build] [debug] [net] [try-net] [peers] [bench] [micro]
#
#   venv     .venv with tunlb and its tools, without compiling (always done)
#   build    and the rooms compiled in place; uncompiled where there is no compiler
#   debug    and a copy in build/debug compiled with every index checked
#   net      the programs that demo, e2e and bench call; try-net only warns when they are missing
#   peers    the servers and stacks that end-to-end tests meet, beside those of net
#   bench    the programs that `tunlb bench` measures or measures with; warns of missing ones
#   micro    valgrind, which counts instructions, and a compiler
#
# Debian packages are installed when they are missing and we may (root, or sudo that asks nothing).
# They are installed as programs: no service is started because of it, now or at the next boot.
set -euo pipefail
cd "$(dirname "$0")/.."

ROOT=$PWD
LOG=$ROOT/build/bootstrap.log
VENV=.venv
OLDEST=3.11
WANTS=" venv $* "
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1

wants() { [[ $WANTS == *" $1 "* ]]; }
step() { echo "[$1/4] $2"; }
# Debian's PATH of a user leaves out where haproxy, nginx and nft are.
have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }
must_compile() { [[ ${CI:-} == true || ${TUNLB_REQUIRE_COMPILED:-} == 1 ]]; }

die() {
    echo "tunlb: $*" >&2
    exit 1
}

# quietly WHAT COMMAND...: the output goes to the log; its end is shown when the command fails.
quietly() {
    local what=$1
    shift
    mkdir -p build
    echo "== $*" >"$LOG"
    "$@" >>"$LOG" 2>&1 </dev/null && return
    echo "tunlb: $what failed. The end of $LOG:" >&2
    tail -n 40 "$LOG" | sed 's/^/    /' >&2
    return 1
}

# ---- Debian packages ---------------------------------------------------------------------------

as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else sudo -n env DEBIAN_FRONTEND=noninteractive "$@"; fi
}

may_install() { have apt-get && { [[ $(id -u) == 0 ]] || { have sudo && sudo -n true 2>/dev/null; }; }; }

# Debian starts what it installs unless this file forbids it (invoke-rc.d(8), status 101). One that
# is there already belongs to the machine's owner, and decides alone.
POLICY=/usr/sbin/policy-rc.d

forbid_starts() {
    [[ ! -e $POLICY ]] || return 0
    trap 'as_root rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 0755 "$POLICY"
}

allow_starts() {
    [[ -n $(trap -p EXIT) ]] || return 0
    as_root rm -f "$POLICY"
    trap - EXIT
}

# not_at_boot SERVICE...: of a service that was just installed.
not_at_boot() {
    if [[ -d /run/systemd/system ]]; then as_root systemctl disable "$@"; return; fi
    local service
    for service in "$@"; do as_root update-rc.d "$service" disable; done
}

apt_install() {
    local install=(apt-get install -y --no-install-recommends "$@") service new=() status=0
    for service in haproxy nginx; do [[ -e /etc/init.d/$service ]] || new+=("$service"); done
    forbid_starts
    # The package lists of a new machine may be absent or old: they are fetched when that shows.
    as_root "${install[@]}" || { as_root apt-get update && as_root "${install[@]}"; } || status=$?
    allow_starts
    for service in "${new[@]}"; do
        [[ ! -e /etc/init.d/$service ]] || not_at_boot "$service" || true
    done
    return "$status"
}

# provide PACKAGE...: installs them, or says exactly what to type and returns 1.
provide() {
    if may_install; then
        step 1 "Debian packages: installing $*"
        quietly "installing $*" apt_install "$@" && return
    fi
    echo "tunlb: missing Debian packages: $*. Install them with:" >&2
    echo "    sudo apt-get update && sudo apt-get install $*" >&2
    return 1
}

# ---- the interpreter -----------------------------------------------------------------------------

# Runs each candidate: a version manager's shim may be on the PATH and yet start nothing.
find_python() {
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        "$name" -c "import sys; sys.exit(sys.version_info < (${OLDEST/./, }))" 2>/dev/null || continue
        "$name" -c 'import sys; print(sys.executable)'
        return
    done
    return 1
}

# The Debian package of an interpreter that is new enough, if this release has one.
python_package() {
    local name version
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        version=$(apt-cache policy "$name" 2>/dev/null | sed -n 's/^ *Candidate: *//p')
        [[ -n $version && $version != "(none)" ]] || continue
        dpkg --compare-versions "$version" ge "$OLDEST" && echo "$name" && return
    done
    return 1
}

need_python() {
    PY=$(find_python) && return
    [[ -z ${PYTHON:-} ]] || die "PYTHON=$PYTHON is not Python $OLDEST or newer"
    have apt-get || die "needs Python $OLDEST or newer on the PATH, or PYTHON=/path/to/python3 make ..."
    local package
    package=$(python_package) ||
        { may_install && quietly "apt-get update" as_root apt-get update && package=$(python_package); } ||
        die "needs Python $OLDEST or newer, and this release packages none: install one and run PYTHON=/path/to/python3 make ..."
    provide "$package" "$package-venv" || exit 1
    PY=$(find_python) || die "installed $package, but still find no Python $OLDEST or newer"
}

# ---- what is missing -----------------------------------------------------------------------------

python_version() { "$PY" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'; }

missing_programs() {
    local program package
    while read -r program package; do
        have "$program" || echo "$package"
    done
}

net_programs() {
    missing_programs <<'TABLE'
ip iproute2
iperf3 iperf3
curl curl
ping iputils-ping
TABLE
}

peer_programs() {
    missing_programs <<'TABLE'
haproxy haproxy
nginx nginx
nft nftables
TABLE
    [[ -e /usr/lib/usrsctp ]] || echo libusrsctp-examples
}

bench_programs() {
    missing_programs <<'TABLE'
haproxy haproxy
nginx nginx
nft nftables
wrk wrk
sockperf sockperf
valgrind valgrind
TABLE
    # The stream module is a package of its own, or built into an nginx from elsewhere.
    [[ -e /usr/lib/nginx/modules/ngx_stream_module.so ]] ||
        PATH=$PATH:/usr/sbin nginx -V 2>&1 | grep -qE -- '--with-stream( |$)' ||
        echo libnginx-mod-stream
}

# Looks for the headers themselves: they come from Debian or with the interpreter, as it happens.
compiler() {
    local include
    include=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    have cc || have gcc || echo gcc
    [[ -e /usr/include/stdio.h ]] || echo libc6-dev
    [[ -e $include/Python.h ]] || echo "$(python_version)-dev"
}

# One call for all, so that a machine where we may not install hears of everything at once.
need_packages() {
    local must="" may="" package failed=""
    "$PY" -c 'import ensurepip, venv' 2>/dev/null || must+=" $(python_version)-venv"
    if wants build || wants debug; then
        if must_compile || wants micro; then must+=" $(compiler)"; else may+=" $(compiler)"; fi
    fi
    if wants net || { wants try-net && [[ ${CI:-} == true ]]; }; then
        must+=" $(net_programs)"
    elif wants try-net; then
        may+=" $(net_programs)"
    fi
    if wants peers; then
        if [[ ${CI:-} == true ]]; then must+=" $(peer_programs)"; else may+=" $(peer_programs)"; fi
    fi
    ! wants micro || must+=" $(missing_programs <<<"valgrind valgrind")"
    ! wants bench || may+=" $(bench_programs)"
    # shellcheck disable=SC2046,SC2086
    set -- $(printf '%s\n' $must $may | sort -u)
    [[ $# != 0 ]] || return 0
    provide "$@" && return
    # One that this release does not have must not keep the others away.
    for package in "$@"; do
        may_install && [[ $# != 1 ]] && quietly "installing $package" apt_install "$package" && continue
        failed+=" $package"
        [[ " $(echo $must) " != *" $package "* ]] || exit 1
    done
    [[ -z $failed ]] || echo "tunlb: goes on without$failed: slower, or with less to test and to measure" >&2
}

# ---- the virtual environment and the builds --------------------------------------------------------

digest() { sha256sum "$@" 2>/dev/null | sha256sum | cut -d' ' -f1; }

make_venv() {
    local python=$VENV/bin/python stamp=$VENV/.installed key version place
    # A copied or moved .venv still points at the old place, and PYTHON= may ask for another version.
    read -r version place < <(cat "$VENV/.place" 2>/dev/null) || true
    if ! "$python" -c '' 2>/dev/null || [[ $place != "$ROOT" ]] ||
        { [[ -n ${PYTHON:-} ]] && [[ $version != "$(python_version)" ]]; }; then
        step 2 "virtual environment $VENV ($("$PY" --version))"
        quietly "making $VENV" "$PY" -m venv --clear "$VENV" || exit 1
        echo "$(python_version) $ROOT" >"$VENV/.place"
    fi
    key=$(digest pyproject.toml setup.py)
    [[ $(cat "$stamp" 2>/dev/null) == "$key" ]] && return
    step 3 "Python dependencies"
    # Without build isolation the set-up needs one setuptools, not a second one fetched aside.
    quietly "installing setuptools" "$python" -m pip install -q 'setuptools>=77' || exit 1
    quietly "installing the dependencies" env TUNLB_PURE=1 \
        "$python" -m pip install -q --no-build-isolation -e '.[dev]' || exit 1
    echo "$key" >"$stamp"
}

rooms() { find tunlb -name '*.pxd' | sort | while read -r header; do echo "$header" "${header%.pxd}.py"; done; }

# tell_compiled COUNT SINCE: every half minute, how many of COUNT rooms are newer than that file.
tell_compiled() {
    while sleep 30 >/dev/null 2>&1; do
        echo "      $(find build -name '*.o' -newer "$2" | wc -l) of $1 compiled"
    done
}

# compile WHERE: the rooms of the tree in WHERE, in place; the stamp keeps a second run quick.
compile() {
    cd "$ROOT/$1"
    local python=$ROOT/$VENV/bin/python stamp=build/compiled key library room count teller status=0
    # shellcheck disable=SC2046
    key=$(digest setup.py "$ROOT/$VENV/pyvenv.cfg" $(rooms))
    if [[ $(cat "$stamp" 2>/dev/null) != "$key" ]]; then
        count=$(rooms | wc -l)
        step 4 "compiling $count rooms${2:+ ($2)}: some minutes on a small machine"
        # A module that is no room any more must not be shadowed by what was built of it.
        find tunlb -name '*.so' | while read -r library; do
            room=${library%%.cpython-*}
            [[ -e $room.pxd ]] || rm -f "$library"
        done
        mkdir -p build
        : >build/compiling
        tell_compiled "$count" build/compiling &
        teller=$!
        quietly "compiling" "$python" setup.py -q build_ext --inplace || status=$?
        kill "$teller"
        wait "$teller" 2>/dev/null || true
        [[ $status == 0 ]] || exit 1
        if [[ $("$python" -c 'import tunlb; print(tunlb.build())') == compiled ]]; then
            echo "$key" >"$stamp"
        else
            echo "tunlb: not compiled, goes on uncompiled; why: $LOG" >&2
        fi
    fi
    cd "$ROOT"
}

need_python
need_packages
make_venv
! must_compile || export TUNLB_REQUIRE_COMPILED=1
if wants build; then compile .; fi
if wants debug; then
    "$VENV/bin/python" tools/mirror.py build/debug
    TUNLB_DEBUG=1 TUNLB_REQUIRE_COMPILED=1 compile build/debug "checked"
fi
