# The image of all parts: static programs and nothing else. `make images` builds the
# programs and hands their directory over as the context.
FROM scratch
COPY operator storagenode exchange countinghouse /
USER 65532:65532
