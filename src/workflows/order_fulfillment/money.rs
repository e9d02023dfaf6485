use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::value::RawValue;

/// US dollars, exact to the cent.
///
/// As JSON: a number with two decimals; a decimal string is read too. Amounts with fractions of a cent are
/// refused, except for the noise that binary floating point leaves in a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money {
    cents: i64,
}

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self::from_cents(0);

    /// An amount in cents.
    pub const fn from_cents(cents: i64) -> Self {
        Self { cents }
    }

    /// The amount in cents.
    pub const fn cents(self) -> i64 {
        self.cents
    }

    /// The sum, unless it is too large to count.
    pub fn plus(self, other: Self) -> Option<Self> {
        self.cents.checked_add(other.cents).map(Self::from_cents)
    }

    /// The price of `quantity` pieces, unless it is too large to count.
    pub fn times(self, quantity: u32) -> Option<Self> {
        self.cents.checked_mul(quantity.into()).map(Self::from_cents)
    }

    /// The share of a positive amount, in thousandths, rounded half up to the cent.
    pub fn per_mille(self, thousandths: u32) -> Self {
        let share = (i128::from(self.cents) * i128::from(thousandths) + 500).div_euclid(1_000);
        Self::from_cents(i64::try_from(share).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.cents < 0 { "-" } else { "" };
        let cents = self.cents.unsigned_abs();
        write!(f, "{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

/// A text that is no amount of money.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an amount of dollars and whole cents, such as 29.99")]
pub struct NotMoney(String);

impl FromStr for Money {
    type Err = NotMoney;

    fn from_str(text: &str) -> Result<Self, NotMoney> {
        let refused = || NotMoney(text.to_owned());
        let (sign, unsigned) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
        let (dollars, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let cents = format!("{:0<2}", fraction.trim_end_matches('0'));
        if !digits(dollars) || !digits(fraction) || cents.len() > 2 {
            return Err(refused());
        }
        let cents: i64 = format!("{dollars}{cents}").parse().map_err(|_| refused())?;
        Ok(Self::from_cents(sign * cents))
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;

        impl de::Visitor<'_> for Amount {
            type Value = Money;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of dollars and whole cents, such as 29.99")
            }

            fn visit_i64<E: de::Error>(self, dollars: i64) -> Result<Money, E> {
                self.visit_str(&dollars.to_string())
            }

            fn visit_u64<E: de::Error>(self, dollars: u64) -> Result<Money, E> {
                self.visit_str(&dollars.to_string())
            }

            fn visit_f64<E: de::Error>(self, dollars: f64) -> Result<Money, E> {
                // Up to here a double still tells a thousandth of a cent.
                const LIMIT: f64 = 1e10;
                let cents = (dollars * 100.0).round();
                if dollars.abs() > LIMIT || (dollars * 100.0 - cents).abs() > 1e-3 {
                    return Err(E::invalid_value(de::Unexpected::Float(dollars), &self));
                }
                Ok(Money::from_cents(cents as i64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Money, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<i64> {
        serde_json::from_str(json).ok().map(Money::cents)
    }

    #[test]
    fn amounts_are_read_to_the_cent_from_numbers_and_strings() {
        for (json, cents) in [
            ("29.99", 2_999),
            ("\"29.99\"", 2_999),
            ("29", 2_900),
            ("\"29\"", 2_900),
            ("0.1", 10),
            ("\"0.100\"", 10),
            ("-0.05", -5),
            ("\"-0.05\"", -5),
            ("209.97000000000003", 20_997),
            ("9999999999.99", 999_999_999_999),
            ("1e2", 10_000),
        ] {
            assert_eq!(read(json), Some(cents), "{json}");
        }
    }

    #[test]
    fn what_is_no_whole_number_of_cents_is_refused() {
        for json in ["29.995", "\"29.995\"", "1e300", "\"\"", "\"1e2\"", "\".5\"", "\"1.\"", "\"-\"", "null"]
        {
            assert_eq!(read(json), None, "{json}");
        }
        assert_eq!(read("18446744073709551615"), None);
    }

    #[test]
    fn amounts_are_written_as_numbers_with_two_decimals() {
        for (cents, json) in [(20_997, "209.97"), (1_500, "15.00"), (5, "0.05"), (-5, "-0.05")] {
            assert_eq!(serde_json::to_string(&Money::from_cents(cents)).unwrap(), json);
        }
    }

    #[test]
    fn shares_are_rounded_half_up() {
        for (cents, fee) in [(20_997, 609), (500, 15), (17, 0), (18, 1), (0, 0)] {
            assert_eq!(Money::from_cents(cents).per_mille(29).cents(), fee, "{cents}");
        }
    }
}
