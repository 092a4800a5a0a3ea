"""Rows that the DIH paper has and the CRD benchmark has not, and small networks that each of them can be run on."""

from kdtable import papers

NAMES = ("takd", "dih", "heads", "tofd-teacher", "tofd", "mhkd", "dml")
ROWS = {name: papers.load("dih").row(name) for name in NAMES}

#: Where they are not a plain resnet8 and resnet14.
STUDENTS = {"heads": "resnet8+heads", "tofd-teacher": "resnet8+tofd", "tofd": "resnet8+tofd"}
TEACHERS = {"dih": "resnet14+heads", "tofd": "resnet14+tofd"}
