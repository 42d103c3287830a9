//! A value's bytes in the codec, field by field, each line with what it is: `0100  # protocol u16`.

use serde::Serialize;
use serde::ser::{
    Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// One field.
pub(crate) struct Line {
    pub(crate) bytes: Vec<u8>,
    pub(crate) label: String,
    /// A single byte of a list, which is joined with its neighbours.
    is_byte: bool,
}

impl Line {
    pub(crate) fn new(bytes: &[u8], label: &str) -> Self {
        Self { bytes: bytes.to_vec(), label: label.to_owned(), is_byte: false }
    }
}

/// The lines of a value; their bytes together are what the codec makes of it.
pub(crate) fn lines<T: Serialize>(value: &T) -> Vec<Line> {
    let mut annotator = Annotator::default();
    value.serialize(&mut annotator).unwrap();
    let bytes: Vec<u8> = annotator.lines.iter().flat_map(|line| line.bytes.clone()).collect();
    assert_eq!(bytes, proto::codec::encode(value).unwrap(), "the notes are not those of the codec");
    annotator.lines
}

/// As a document shows them.
pub(crate) fn render(lines: &[Line]) -> String {
    let hex: Vec<String> = lines.iter().map(|line| line.bytes.iter().map(|b| format!("{b:02x}")).collect()).collect();
    // Long lines do not push the notes of the short ones away.
    let width = hex.iter().map(String::len).filter(|width| *width <= 32).max().unwrap_or(0);
    let rows = hex.iter().zip(lines);
    rows.map(|(hex, line)| format!("{hex:width$}  # {}\n", line.label)).collect()
}

/// The bytes of a block.
pub(crate) fn parse(block: &str) -> Vec<u8> {
    let digits: Vec<u32> = block
        .lines()
        .flat_map(|line| line.split('#').next().unwrap().chars().filter(|c| !c.is_whitespace()))
        .map(|c| c.to_digit(16).unwrap_or_else(|| panic!("'{c}' is no hex digit")))
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte");
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

#[derive(Default)]
struct Annotator {
    lines: Vec<Line>,
    path: Vec<String>,
}

impl Annotator {
    fn put(&mut self, bytes: &[u8], kind: &str) -> Result<(), Fault> {
        let path = self.path.join(".").replace(".[", "[");
        let label = if path.is_empty() { kind.to_owned() } else { format!("{path} {kind}") };
        self.lines.push(Line { is_byte: kind == "u8" && bytes.len() == 1, ..Line::new(bytes, &label) });
        Ok(())
    }

    fn nested<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Fault> {
        self.path.push(name.to_owned());
        value.serialize(&mut *self)?;
        self.path.pop();
        Ok(())
    }

    fn compound(&mut self, counted: bool) -> Compound<'_> {
        let start = self.lines.len();
        Compound { to: self, start, counted, next: 0 }
    }
}

/// A list, a tuple or a struct under way.
struct Compound<'a> {
    to: &'a mut Annotator,
    /// Where its elements begin.
    start: usize,
    counted: bool,
    next: usize,
}

impl Compound<'_> {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fault> {
        let name = format!("[{}]", self.next);
        self.next += 1;
        self.to.nested(&name, value)
    }

    /// Elements that are single bytes become one line.
    fn finish(self) -> Result<(), Fault> {
        let elements = &self.to.lines[self.start..];
        if elements.is_empty() || !elements.iter().all(|line| line.is_byte) {
            return Ok(());
        }
        let bytes: Vec<u8> = elements.iter().map(|line| line.bytes[0]).collect();
        self.to.lines.truncate(self.start);
        if self.counted {
            let count = self.to.lines.pop().unwrap();
            self.to.put(&[count.bytes, bytes].concat(), "bytes")
        } else {
            let kind = format!("{} bytes", bytes.len());
            self.to.put(&bytes, &kind)
        }
    }
}

#[derive(Debug)]
pub(crate) struct Fault(String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl serde::ser::Error for Fault {
    fn custom<T: std::fmt::Display>(text: T) -> Self {
        Self(text.to_string())
    }
}

macro_rules! numbers {
    ($($method:ident $kind:ident),*) => {$(
        fn $method(self, value: $kind) -> Result<(), Fault> {
            self.put(&value.to_le_bytes(), stringify!($kind))
        }
    )*};
}

impl<'a> Serializer for &'a mut Annotator {
    type Ok = ();
    type Error = Fault;
    type SerializeSeq = Compound<'a>;
    type SerializeTuple = Compound<'a>;
    type SerializeTupleStruct = Compound<'a>;
    type SerializeTupleVariant = Compound<'a>;
    type SerializeMap = Compound<'a>;
    type SerializeStruct = Compound<'a>;
    type SerializeStructVariant = Compound<'a>;

    numbers!(serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64);
    numbers!(serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64);

    fn is_human_readable(&self) -> bool {
        false
    }
    fn serialize_bool(self, value: bool) -> Result<(), Fault> {
        self.put(&[value.into()], if value { "bool: yes" } else { "bool: no" })
    }
    fn serialize_f32(self, _: f32) -> Result<(), Fault> {
        Err(Fault::custom("no format has fractions"))
    }
    fn serialize_f64(self, _: f64) -> Result<(), Fault> {
        Err(Fault::custom("no format has fractions"))
    }
    fn serialize_char(self, _: char) -> Result<(), Fault> {
        Err(Fault::custom("no format has characters"))
    }
    fn serialize_str(self, text: &str) -> Result<(), Fault> {
        self.put(&[&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat(), "text")
    }
    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Fault> {
        self.put(&[&(bytes.len() as u64).to_le_bytes(), bytes].concat(), "bytes")
    }
    fn serialize_none(self) -> Result<(), Fault> {
        self.put(&[0], "option: none")
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Fault> {
        self.put(&[1], "option: some")?;
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Fault> {
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Fault> {
        Ok(())
    }
    fn serialize_unit_variant(self, name: &'static str, number: u32, variant: &'static str) -> Result<(), Fault> {
        self.put(&number.to_le_bytes(), &format!("{name} {number}: {variant}"))
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Fault> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        number: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Fault> {
        self.serialize_unit_variant(name, number, variant)?;
        value.serialize(self)
    }
    fn serialize_seq(self, count: Option<usize>) -> Result<Compound<'a>, Fault> {
        let count = count.ok_or_else(|| Fault::custom("a list of unknown length"))?;
        self.put(&(count as u64).to_le_bytes(), "list")?;
        Ok(self.compound(true))
    }
    fn serialize_tuple(self, _: usize) -> Result<Compound<'a>, Fault> {
        Ok(self.compound(false))
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Compound<'a>, Fault> {
        Ok(self.compound(false))
    }
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        number: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a>, Fault> {
        self.serialize_unit_variant(name, number, variant)?;
        Ok(self.compound(false))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Compound<'a>, Fault> {
        Err(Fault::custom("no format has maps"))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Compound<'a>, Fault> {
        Ok(self.compound(false))
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        number: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a>, Fault> {
        self.serialize_unit_variant(name, number, variant)?;
        Ok(self.compound(false))
    }
}

macro_rules! elements {
    ($($of:ident $method:ident),*) => {$(
        impl $of for Compound<'_> {
            type Ok = ();
            type Error = Fault;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fault> {
                self.element(value)
            }
            fn end(self) -> Result<(), Fault> {
                self.finish()
            }
        }
    )*};
}

macro_rules! fields {
    ($($of:ident),*) => {$(
        impl $of for Compound<'_> {
            type Ok = ();
            type Error = Fault;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Fault> {
                self.to.nested(name, value)
            }
            fn end(self) -> Result<(), Fault> {
                Ok(())
            }
        }
    )*};
}

elements!(SerializeSeq serialize_element, SerializeTuple serialize_element);
elements!(SerializeTupleStruct serialize_field, SerializeTupleVariant serialize_field);
fields!(SerializeStruct, SerializeStructVariant);

impl SerializeMap for Compound<'_> {
    type Ok = ();
    type Error = Fault;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), Fault> {
        Err(Fault::custom("no format has maps"))
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), Fault> {
        Err(Fault::custom("no format has maps"))
    }
    fn end(self) -> Result<(), Fault> {
        Ok(())
    }
}
