# liverseg on CPUs, with its weights inside:
#   docker build -t liverseg .
#   docker run --rm -v "$PWD:/data" liverseg predict /data/scan.nii.gz -o /data/mask.nii.gz
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/liverseg && /opt/liverseg/bin/pip install --no-cache-dir ".[dicom]"

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 liverseg
COPY --from=build /opt/liverseg /opt/liverseg
ENV PATH=/opt/liverseg/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /data
ENTRYPOINT ["liverseg"]
CMD ["--help"]
