#!/usr/bin/env bash
# mac-sdk.sh DIR: a stub SDK for linking our programs for macOS on Linux: text files that say which library has which symbol.
# Ours are written here, of what we call and no more, so that a name which is misspelt or in another library does not link. libSystem's
# (the C library, 330 KB) comes out of Zig's package on PyPI. Nothing of it is committed, and nothing made with it is shipped: programs
# for users are linked on a Mac (docs/macos.md).
# Ends with 77, and says why, where that package cannot be had.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ZIG=0.15.1
NOT_HERE=77
sdk=${1:?a directory for it}

# stub FILE INSTALL_NAME SYMBOLS CLASSES, both lists with commas
stub() {
    mkdir -p "${1%/*}"
    cat >"$1" <<TBD
--- !tapi-tbd
tbd-version: 4
targets: [ arm64-macos ]
install-name: '$2'
exports:
  - targets: [ arm64-macos ]
    symbols: [ $3 ]
    objc-classes: [ $4 ]
...
TBD
}

# framework NAME VERSION SYMBOLS CLASSES
framework() {
    local path=System/Library/Frameworks/$1.framework
    stub "$sdk/$path/$1.tbd" "/$path/Versions/$2/$1" "$3" "$4"
}

# classes PREFIX: those of the table of names, with commas
classes() { sed -nE "s/^class ($1[A-Za-z0-9]*) .*/\1/p" "$ROOT/mac-check/names.txt" | paste -sd,; }

fetch_lib_system() {
    local wheel
    say "fetching Zig $ZIG's package for its list of libSystem's symbols (90 MB; 330 KB of it stay in the cache)"
    apt_need "unpacking it" python3 python3-pip unzip
    python3 -m pip download --quiet --no-deps --no-input --only-binary :all: -d "$1/wheel" "ziglang==$ZIG" >/dev/null 2>&1 || {
        say "PyPI has no ziglang $ZIG for this machine, or cannot be reached"
        exit 1
    }
    wheel=$(echo "$1"/wheel/*.whl)
    unzip -qp "$wheel" ziglang/lib/libc/darwin/libSystem.tbd >"$1/libSystem.tbd" || exit 1
    rm -r "$1/wheel"
}

(in_cache "mac-libsystem-$ZIG" fetch_lib_system) || exit "$NOT_HERE"
mkdir -p "$sdk/usr/lib"
# Programs of arm64 are linked against what there is for arm64e.
sed 's/arm64e-/arm64-/g' "$CACHE/mac-libsystem-$ZIG/libSystem.tbd" >"$sdk/usr/lib/libSystem.tbd"
ln -sf libSystem.tbd "$sdk/usr/lib/libc.tbd"
ln -sf libSystem.tbd "$sdk/usr/lib/libm.tbd"
stub "$sdk/usr/lib/libiconv.tbd" /usr/lib/libiconv.2.dylib "" ""
stub "$sdk/usr/lib/libobjc.tbd" /usr/lib/libobjc.A.dylib "
    _class_addIvar, _class_addMethod, _class_addProtocol, _class_getClassMethod, _class_getInstanceMethod, _class_getInstanceVariable,
    _class_getName, _class_getSuperclass, _class_isMetaClass, _ivar_getOffset, _method_getName, _method_getTypeEncoding, _objc_alloc,
    _objc_allocateClassPair, _objc_autoreleasePoolPop, _objc_autoreleasePoolPush, _objc_disposeClassPair, _objc_getClass,
    _objc_getProtocol, _objc_msgSend, _objc_msgSendSuper, _objc_registerClassPair, _objc_release, _objc_retain,
    _objc_retainAutoreleasedReturnValue, _object_getClass, _protocol_copyMethodDescriptionList, _protocol_getName, _sel_getName" NSObject
framework CoreFoundation A "
    _CFRelease, _CFRetain, _CFRunLoopGetCurrent, _CFRunLoopRunInMode, _CFRunLoopStop, _kCFRunLoopDefaultMode" "NSArray, NSURL"
framework Foundation C "" "NSFileHandle, NSProcessInfo, NSString"
framework IOKit A "_IOAllowPowerChange, _IONotificationPortSetDispatchQueue, _IORegisterForSystemPower" ""
framework Virtualization A "" "$(classes VZ)"
