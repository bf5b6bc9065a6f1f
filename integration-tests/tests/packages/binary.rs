//! The binary must run on RHEL 8: glibc 2.28, libnftnl 1.2.2, libmnl 1.0.4.

use anyhow::{Context, Result, ensure};
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, Sym};
use object::{Endianness, elf};
use portward_integration_tests::packages::packages;
use portward_integration_tests::portward;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The newest version of glibc whose symbols may be used: that of RHEL 8.
const GLIBC: [u32; 2] = [2, 28];

/// The symbols that the two libraries have in RHEL 8, `NAME VERSION` by line.
const LIBRARIES: [(&str, &str); 2] = [
    ("libnftnl.so.11", include_str!("../../fixtures/libnftnl-1.2.2.symbols")),
    ("libmnl.so.0", include_str!("../../fixtures/libmnl-1.0.4.symbols")),
];

/// The libraries that every system with glibc has, besides.
const GLIBC_LIBRARIES: [&str; 7] =
    ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];

/// A symbol that a program takes from a library.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    name: String,
    /// As in `GLIBC_2.28`; `None` when any will do.
    version: Option<String>,
    /// Whose version that is.
    library: Option<String>,
}

/// What a program takes from libraries, and which it names.
#[derive(Debug)]
struct Imports {
    symbols: BTreeSet<Import>,
    libraries: BTreeSet<String>,
}

impl Imports {
    fn of(program: &Path) -> Result<Self> {
        let data = fs::read(program).with_context(|| format!("{} cannot be read", program.display()))?;
        let data = data.as_slice();
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
        let mut libraries = BTreeSet::new();
        let (dynamic, link) = sections.dynamic(endian, data)?.context("it is not linked dynamically")?;
        let strings = sections.strings(endian, data, link)?;
        for entry in dynamic.iter().filter(|entry| entry.d_tag.get(endian) == elf::DT_NEEDED) {
            let offset = u32::try_from(entry.d_val.get(endian))?;
            let name = strings.get(offset).map_err(|()| anyhow::anyhow!("a library without a name"))?;
            libraries.insert(String::from_utf8_lossy(name).into_owned());
        }
        let versions = sections.versions(endian, data)?.context("its symbols have no versions")?;
        let mut imports = Self { symbols: BTreeSet::new(), libraries };
        for (index, symbol) in symbols.enumerate() {
            if !symbol.is_undefined(endian) || symbol.st_name(endian) == 0 {
                continue;
            }
            let name = String::from_utf8_lossy(symbol.name(endian, symbols.strings())?).into_owned();
            let version = versions.version(versions.version_index(endian, index))?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            imports.symbols.insert(Import {
                name,
                version: version.map(|version| text(version.name())),
                library: version.and_then(|version| version.file()).map(text),
            });
        }
        Ok(imports)
    }

    /// What RHEL 8 has not, in words.
    fn missing(&self) -> Vec<String> {
        let known: BTreeMap<&str, &str> = LIBRARIES
            .iter()
            .flat_map(|(_, symbols)| symbols.lines())
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(' '))
            .collect();
        let expected = |library: &str| {
            GLIBC_LIBRARIES.contains(&library) || LIBRARIES.iter().any(|(expected, _)| *expected == library)
        };
        let libraries = self.libraries.iter().filter(|library| !expected(library));
        let mut missing: Vec<String> = libraries.map(|library| format!("the library {library}")).collect();
        for import in &self.symbols {
            let version = import.version.as_deref().unwrap_or_default();
            let of_ours =
                import.library.as_deref().is_some_and(|of| LIBRARIES.iter().any(|(library, _)| *library == of))
                    || import.name.starts_with("nftnl_")
                    || import.name.starts_with("mnl_");
            let fine = match glibc_version(version) {
                Some(version) => version.as_slice() <= GLIBC.as_slice(),
                None if of_ours => {
                    known.get(import.name.as_str()).is_some_and(|known| version.is_empty() || *known == version)
                }
                // Of the compiler's own library, whose newest version here is as old as GCC 4.2; or weak ones that the
                // program does without.
                None => version.is_empty() || version.starts_with("GCC_"),
            };
            if !fine {
                missing.push(format!("{} {version}", import.name));
            }
        }
        missing
    }
}

/// `GLIBC_2.28` as numbers; `GLIBC_PRIVATE` is newer than anything.
fn glibc_version(version: &str) -> Option<Vec<u32>> {
    let numbers = version.strip_prefix("GLIBC_")?;
    Some(numbers.split('.').map(|number| number.parse().unwrap_or(u32::MAX)).collect())
}

#[test]
fn the_packaged_binary_asks_for_nothing_that_rhel_8_has_not() -> Result<()> {
    let imports = Imports::of(&packages().binary)?;
    let names: Vec<&str> = imports.symbols.iter().map(|import| import.name.as_str()).collect();
    // The look into the file finds what must be there.
    assert!(
        names.contains(&"nftnl_rule_alloc") && names.contains(&"mnl_socket_open") && names.contains(&"getenv"),
        "{names:?}"
    );
    assert_eq!(imports.missing(), Vec::<String>::new());
    Ok(())
}

#[test]
fn what_is_newer_is_found() -> Result<()> {
    // Cargo's plain build is linked against this machine's glibc. Where that is not newer than RHEL 8's, the rule is
    // tried on symbols alone.
    let plain = Imports::of(portward::binary())?;
    let newest = plain.symbols.iter().filter_map(|import| glibc_version(import.version.as_deref()?)).max();
    let newer = newest.context("the plain build uses glibc")?.as_slice() > GLIBC.as_slice();
    assert_eq!(!plain.missing().is_empty(), newer, "{:?}", plain.missing());

    let import = |name: &str, version: &str, library: &str| Import {
        name: name.to_owned(),
        version: (!version.is_empty()).then(|| version.to_owned()),
        library: (!library.is_empty()).then(|| library.to_owned()),
    };
    let good = [
        import("memcpy", "GLIBC_2.14", "libc.so.6"),
        import("fcntl64", "GLIBC_2.28", "libc.so.6"),
        import("nftnl_rule_alloc", "LIBNFTNL_11", "libnftnl.so.11"),
        import("mnl_socket_open", "LIBMNL_1.0", "libmnl.so.0"),
        import("__gmon_start__", "", ""),
    ];
    let bad = [
        import("pidfd_spawn", "GLIBC_2.39", "libc.so.6"),
        import("gettid", "GLIBC_2.30", "libc.so.6"),
        import("_dl_sym", "GLIBC_PRIVATE", "libc.so.6"),
        // In libnftnl from 1.2.5 on.
        import("nftnl_set_elem_nlmsg_build_new", "LIBNFTNL_18", "libnftnl.so.11"),
        import("nftnl_no_such_function", "", ""),
        import("mnl_no_such_function", "LIBMNL_1.3", "libmnl.so.0"),
        import("SSL_new", "OPENSSL_3.0.0", "libssl.so.3"),
    ];
    let libraries = BTreeSet::from(["libc.so.6".to_owned(), "libssl.so.3".to_owned()]);
    let imports = Imports { symbols: good.iter().chain(&bad).cloned().collect(), libraries };
    let mut expected = vec!["the library libssl.so.3".to_owned()];
    let mut bad: Vec<&Import> = bad.iter().collect();
    bad.sort();
    expected.extend(bad.iter().map(|bad| format!("{} {}", bad.name, bad.version.as_deref().unwrap_or_default())));
    assert_eq!(imports.missing(), expected);
    Ok(())
}

#[test]
fn the_lists_of_symbols_are_whole() -> Result<()> {
    for (library, symbols) in LIBRARIES {
        let lines = symbols.lines().filter(|line| !line.starts_with('#'));
        let malformed: Vec<&str> = lines.clone().filter(|line| line.split(' ').count() != 2).collect();
        ensure!(malformed.is_empty(), "{library}: {malformed:?}");
        ensure!(lines.count() > 60, "{library} has more symbols than that");
    }
    Ok(())
}
