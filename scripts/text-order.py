"""text-order.py MAP ELF TRACE: a linker script that puts the code of TRACE first, in the order of its first run.

MAP is lld's map of ELF, TRACE what QEMU's `-d in_asm` wrote. Names lose the compiler's hash, so that the script outlives a change of
the code; what it names and is no more costs nothing, and what it does not name stays behind.
Never: trusts an address alone. A container's program may be mapped at the same one, so the bytes are compared.
"""

import bisect
import re
import struct
import sys


def sections(path):
    """Input sections of the text: address, size, file, name."""
    found, output = [], ""
    for line in open(path):
        match = re.match(r"\s*([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)\s+\d+(\s+)(\S.*)$", line)
        if match and len(match[3]) == 1:
            output = match[4]
        elif match and output in (".text", ".text.first") and ":(" in match[4]:
            file, name = match[4].rsplit(":(", 1)
            found.append((int(match[1], 16), int(match[2], 16), file, name.rstrip(")")))
    return sorted(found)


def reader(path):
    """What the program has at an address."""
    elf = open(path, "rb").read()
    headers, count = struct.unpack_from("<Q", elf, 32)[0], struct.unpack_from("<H", elf, 56)[0]
    loads = [struct.unpack_from("<IIQQQQ", elf, headers + 56 * i) for i in range(count)]

    def at(address, length):
        for kind, _, offset, start, _, size in loads:
            if kind == 1 and start <= address < start + size:
                return elf[offset + address - start :][:length]
        return b""

    return at


def blocks(path):
    """Address and first instruction of each translated block."""
    begins = False
    for line in open(path, errors="replace"):
        if line.startswith("IN:"):
            begins = True
        elif begins and line.startswith("0x"):
            begins = False
            address, rest = line.split(":", 1)
            code = re.match(r"\s*((?:[0-9a-f]{2} )+)", rest)[1]
            yield int(address, 16), bytes.fromhex(code)


def pattern(name):
    return re.sub(r"(\.llvm\.\d+|\.\d+)$", "*", re.sub(r"17h[0-9a-f]{16}E", "17h*E", name))


def main(map_path, elf_path, trace_path):
    texts = sections(map_path)
    starts = [text[0] for text in texts]
    at = reader(elf_path)
    order = {}
    for address, code in blocks(trace_path):
        index = bisect.bisect_right(starts, address) - 1
        inside = index >= 0 and address < texts[index][0] + texts[index][1]
        if inside and at(address, len(code)) == code:
            order[index] = True
    sizes, run = {}, {}
    for index, (_, size, _, name) in enumerate(texts):
        key = pattern(name)
        sizes[key] = sizes.get(key, 0) + size
        run[key] = run.get(key, 0) + (size if index in order else 0)
    lines = {}
    for index in order:
        _, _, file, name = texts[index]
        member = re.match(r".*/(lib[a-z]+)[^/]*\.a\(([^)]+)\)$", file)
        key = pattern(name)
        if "_ZN" in name or "_R" in name:
            # One name for many types, of which few are run, would bring the others along.
            if sizes[key] <= 3 * run[key] + 2048:
                lines[f"*({key})"] = True
        elif member:
            lines[f"*{member[1]}*:{member[2]}(.text .text.*)"] = True
    print("/* Made by scripts/text-order.sh: code in the order in which a boot and a container's life first run it. */")
    print("SECTIONS\n{\n  .text.first :\n  {")
    for line in lines:
        print(f"    {line}")
    print("  }\n}\nINSERT BEFORE .text;")


main(*sys.argv[1:])
