"""Reads a record with MXNet; run by the Python of MXNet's own environment, which lacks pytest.

Usage: mxnet_reader.py PREFIX    prints a JSON list of [key, flag, label(s), SHA-256 of the payload]
"""

import hashlib
import json
import sys

import mxnet
import numpy


def main() -> None:
    prefix = sys.argv[1]
    record = mxnet.recordio.MXIndexedRecordIO(f"{prefix}.idx", f"{prefix}.rec", "r")
    found = []
    for key in record.keys:
        header, payload = mxnet.recordio.unpack(record.read_idx(key))
        labels = numpy.atleast_1d(header.label).tolist()
        found.append([key, header.flag, labels, hashlib.sha256(payload).hexdigest()])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
