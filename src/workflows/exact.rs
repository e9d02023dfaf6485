//! Integers of any size, and the input and final result that the tree and mixed DAG workflows share.

use std::fmt;
use std::iter::Product;

use num_bigint::BigInt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Step, StepError, StepResult};

/// A task's number may have this many bits, which is 1,000 digits: its 64th power must still fit a message.
const MAX_INPUT_BITS: u64 = 3_322;
/// The longest number read.
const MAX_DIGITS: usize = 65_000;

/// An integer of any size. As JSON: a number up to 2^53, a decimal string beyond; both are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exact(BigInt);

impl Exact {
    /// The number times itself.
    #[must_use]
    pub fn squared(&self) -> Self {
        self.pow(2)
    }

    /// The number raised to `exponent`.
    #[must_use]
    pub fn pow(&self, exponent: u32) -> Self {
        Self(self.0.pow(exponent))
    }

    fn is_even(&self) -> bool {
        !self.0.bit(0)
    }
}

impl From<i64> for Exact {
    fn from(number: i64) -> Self {
        Self(number.into())
    }
}

impl Product for Exact {
    fn product<I: Iterator<Item = Self>>(numbers: I) -> Self {
        Self(numbers.map(|number| number.0).product())
    }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match i64::try_from(&self.0) {
            Ok(number) if number.unsigned_abs() <= 1 << 53 => serializer.serialize_i64(number),
            _ => serializer.collect_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl de::Visitor<'_> for Number {
            type Value = Exact;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an integer, beyond 2^53 as a string of at most {MAX_DIGITS} decimal digits")
            }

            fn visit_i64<E>(self, number: i64) -> Result<Exact, E> {
                Ok(Exact(number.into()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Exact, E> {
                Ok(Exact(number.into()))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Exact, E> {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
                if !plain || !(1..=MAX_DIGITS).contains(&digits.len()) {
                    return Err(E::invalid_value(de::Unexpected::Other("other text"), &self));
                }
                text.parse().map(Exact).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Number)
    }
}

/// The task's context: `even_number`, an even integer of up to 1,000 digits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Context {
    even_number: Option<Exact>,
}

/// The task's number.
pub(super) fn even_number(step: &Step<Context>) -> StepResult<&Exact> {
    let number = step.context.even_number.as_ref().ok_or_else(|| {
        StepError::validation("the task's context has no even_number; submit one, such as 6")
            .code("MISSING_CONTEXT_FIELD")
    })?;
    let refused = |problem: &str| StepError::validation(problem).code("VALIDATION_ERROR");
    if number.0.bits() > MAX_INPUT_BITS {
        return Err(refused("even_number is too long; submit one of at most 1,000 digits"));
    }
    if !number.is_even() {
        return Err(refused("even_number is odd; submit an even one, such as 6"));
    }
    Ok(number)
}

/// The results of the steps named, multiplied, and squared.
pub(super) fn product_squared<C>(step: &Step<C>, names: &[&str]) -> StepResult<Exact> {
    let product: Exact = names.iter().map(|name| step.result_of::<Exact>(name)).product::<StepResult<_>>()?;
    Ok(product.squared())
}

/// What the last step returns: the result, and whether it is the 64th power of the task's number.
#[derive(Debug, Serialize)]
pub struct Verified {
    final_result: Exact,
    verification: Verification,
}

#[derive(Debug, Serialize)]
struct Verification {
    original_number: Exact,
    expected_result: Exact,
    actual_result: Exact,
    matches: bool,
}

/// Compares what the steps made of the task's number with its 64th power.
pub(super) fn verified(step: &Step<Context>, actual: Exact) -> StepResult<Verified> {
    let original = even_number(step)?;
    let expected = original.pow(64);
    Ok(Verified {
        verification: Verification {
            original_number: original.clone(),
            matches: expected == actual,
            expected_result: expected,
            actual_result: actual.clone(),
        },
        final_result: actual,
    })
}
