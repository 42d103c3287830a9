//! What x86-64 code names: functions that it calls, addresses that it takes. Found by the bytes of the few instructions
//! that can hold them, at every offset: what is found by chance leads nowhere, mostly.

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// A call or a jump to here.
    Call(u64),
    /// A call or a jump to the address that stands here.
    Slot(u64),
    /// This address is taken or read.
    Address(u64),
    /// This may be an address, in a program that is not moved.
    Absolute(u64),
}

/// Bytes of the longest instruction that is looked for, less its first.
const BEHIND: usize = 7;

/// Everything that code standing at `address` names, in its order.
pub(super) fn links(code: &[u8], address: u64) -> impl Iterator<Item = Link> + '_ {
    (0..code.len())
        .filter_map(move |at| link(&code[at..code.len().min(at + 1 + BEHIND)], address.wrapping_add(at as u64)))
}

fn link(code: &[u8], address: u64) -> Option<Link> {
    // Relative to the end of the four bytes, which end the instruction.
    let relative = |at: usize| {
        let by = i32::from_le_bytes(*code.get(at..)?.first_chunk()?);
        Some(address.wrapping_add(at as u64 + 4).wrapping_add_signed(by.into()))
    };
    let absolute = |at: usize| Some(Link::Absolute(u32::from_le_bytes(*code.get(at..)?.first_chunk()?).into()));
    // An operand relative to the instruction pointer.
    let is_relative = |at: usize| code.get(at).is_some_and(|mode| mode & 0xc7 == 0x05);
    match *code.first()? {
        // call, jmp
        0xe8 | 0xe9 => relative(1).map(Link::Call),
        // jcc
        0x0f if code.get(1)? & 0xf0 == 0x80 => relative(2).map(Link::Call),
        // movups, movaps, movdqa
        0x0f if matches!(code.get(1)?, 0x10 | 0x28 | 0x6f) && is_relative(2) => relative(3).map(Link::Address),
        // lea, mov
        0x8d | 0x8b if is_relative(1) => relative(2).map(Link::Address),
        // call, jmp by way of a table
        0xff if matches!(code.get(1)?, 0x15 | 0x25) => relative(2).map(Link::Slot),
        // mov of an immediate value
        0xb8..=0xbf => absolute(1),
        0xc7 if code.get(1)? & 0xf8 == 0xc0 => absolute(2),
        _ => None,
    }
}
