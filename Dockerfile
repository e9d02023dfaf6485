# Builds the binary in here, or, with --build-arg BINARY_FROM=prebuilt, takes dist/tasker-worker-rust: one made for
# Debian 12 or newer glibc. Needs BuildKit, which leaves out the stage that is not used.
ARG BINARY_FROM=build

FROM scratch AS prebuilt
COPY --chmod=755 dist/tasker-worker-rust /out/

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin tasker-worker-rust \
    && install -D target/release/tasker-worker-rust /out/tasker-worker-rust

FROM ${BINARY_FROM} AS artifact

# What the binary needs of a system: its libraries and the loader, a user, an order of name lookup, a folder for data.
FROM debian:bookworm-slim AS system
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY --from=artifact /out/tasker-worker-rust /root-of-image/usr/bin/
WORKDIR /root-of-image
RUN ldd usr/bin/tasker-worker-rust | grep -o '/[^ ]*' | xargs cp --parents --dereference --target-directory=. \
    && mkdir -p etc tmp var/lib/tasker \
    && echo 'tasker:x:10001:10001::/var/lib/tasker:/usr/sbin/nologin' > etc/passwd \
    && echo 'tasker:x:10001:' > etc/group \
    && echo 'hosts: files dns' > etc/nsswitch.conf \
    && chmod 1777 tmp && chown 10001:10001 var/lib/tasker

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tasker-worker-rust" \
      org.opencontainers.image.description="Runs workflow steps from RabbitMQ: worker, orchestrator and command line" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=system /root-of-image /
COPY config /app/config
WORKDIR /app
ENV DATABASE_URL=sqlite:/var/lib/tasker/tasker.sqlite
USER 10001:10001
VOLUME /var/lib/tasker
EXPOSE 8080 8081 9091
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=6 CMD ["tasker-worker-rust", "health"]
ENTRYPOINT ["tasker-worker-rust"]
CMD ["worker"]
