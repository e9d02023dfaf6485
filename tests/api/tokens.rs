//! Tokens, signed as an identity provider would.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents};
use ring::{digest, hmac};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tasker_worker_rust::config::AuthConfig;

use crate::auth::secured;
use crate::server::Server;

/// Made for these tests: nothing else is signed by the private half beside it.
const PUBLIC_KEY: &str = "tests/api/signing_key.pub.pem";

fn signing_key() -> RsaKeyPair {
    let der = PrivatePkcs8KeyDer::from_pem_file("tests/api/signing_key.pem").unwrap();
    RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap()
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn signed(header: &Value, claims: &Value) -> String {
    let (message, key) = (format!("{}.{}", encoded(header), encoded(claims)), signing_key());
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "sub": "the shop", "iss": "tasker-core", "aud": "tasker-api", "exp": 32_503_680_000_u64,
        "permissions": ["tasks:list"], "worker_namespaces": ["shop"],
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn rs256() -> Value {
    json!({ "alg": "RS256", "typ": "JWT" })
}

async fn answer(server: &Server, token: &str) -> (u16, String) {
    let authorization = format!("Bearer {token}");
    let answer = server.send("GET", "/v1/tasks", &[("authorization", &authorization)], "").await;
    let body = answer.json();
    (answer.status.as_u16(), body["error"]["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_token_counts_only_signed_in_time_and_for_us() {
    let auth = AuthConfig { jwt_public_key_file: Some(PUBLIC_KEY.into()), ..AuthConfig::default() };
    let server = secured(auth).await;
    assert_eq!(answer(&server, &signed(&rs256(), &claims(&json!({})))).await.0, 200);
    for (change, status, problem) in [
        (json!({"exp": 1_600_000_000}), 401, "it has expired"),
        (json!({"nbf": 32_503_680_000_u64}), 401, "it is not valid yet"),
        (json!({"exp": null}), 401, "it lacks exp"),
        (json!({"exp": "32503680000"}), 401, "it lacks exp"),
        (json!({"iss": "somebody"}), 401, "another issuer"),
        (json!({"iss": null}), 401, "it lacks exp, iss"),
        (json!({"aud": "worker-api"}), 401, "another audience"),
        (json!({"sub": null}), 401, "it lacks exp, iss, aud or sub"),
        (json!({"permissions": ["tasks:read"]}), 403, "\"tasks:list\""),
        (json!({"permissions": null}), 403, "\"tasks:list\""),
        (json!({"permissions": ["*"]}), 403, "\"tasks:list\""),
    ] {
        let (got, message) = answer(&server, &signed(&rs256(), &claims(&change))).await;
        assert!(got == status && message.contains(problem), "{change}: {got} {message}");
    }

    let good = signed(&rs256(), &claims(&json!({})));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let forged = format!(
        "{}.{}.{signature}",
        encoded(&rs256()),
        encoded(&claims(&json!({"permissions": ["tasks:*"]})))
    );
    let unsigned = format!("{}.{}.", encoded(&json!({"alg": "none"})), encoded(&claims(&json!({}))));
    // The public key, which everybody has, as if it were a shared secret.
    let shared = hmac::Key::new(hmac::HMAC_SHA256, &std::fs::read(PUBLIC_KEY).unwrap());
    let confused = format!("{}.{}", encoded(&json!({"alg": "HS256"})), encoded(&claims(&json!({}))));
    let confused = format!("{confused}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&shared, confused.as_bytes())));
    let of_its_own = digest::digest(&digest::SHA256, message.as_bytes());
    for (token, problem) in [
        (forged, "its signature is wrong"),
        (format!("{message}.{}", URL_SAFE_NO_PAD.encode(of_its_own)), "its signature is wrong"),
        (unsigned, "it is no JWT"),
        (confused, "it is not signed with RS256"),
        ("nonsense".to_owned(), "it is no JWT"),
    ] {
        let (got, said) = answer(&server, &token).await;
        assert!(got == 401 && said.contains(problem), "{problem}: {got} {said}");
    }
}

#[tokio::test]
async fn a_set_of_keys_is_searched_for_the_tokens_own() {
    let key = signing_key();
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = |id: &str, n: &[u8]| json!({"kty": "RSA", "kid": id, "alg": "RS256", "use": "sig", "n": part(n), "e": "AQAB"});
    let RsaPublicKeyComponents::<Vec<u8>> { n: modulus, .. } = key.public().into();
    let mut other = modulus.clone();
    other[100] ^= 1;
    let file = tempfile::NamedTempFile::new().unwrap();
    let set = json!({"keys": [jwk("last-year", &other), jwk("this-year", &modulus)]});
    std::fs::write(file.path(), set.to_string()).unwrap();
    let server =
        secured(AuthConfig { jwks_file: Some(file.path().to_owned()), ..AuthConfig::default() }).await;
    for (header, status, problem) in [
        (json!({"alg": "RS256", "kid": "this-year"}), 200, ""),
        (json!({"alg": "RS256", "kid": "last-year"}), 401, "its signature is wrong"),
        (json!({"alg": "RS256", "kid": "next-year"}), 401, "is not one of ours"),
        (rs256(), 401, "is not one of ours"),
    ] {
        let (got, message) = answer(&server, &signed(&header, &claims(&json!({})))).await;
        assert!(got == status && message.contains(problem), "{header}: {got} {message}");
    }
}
