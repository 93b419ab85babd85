"""Annotation files as data sets publish them: large, with a few bad rows and videos that are gone, which are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from memvit.datasets.annotations import AnnotationFile, Finding

MISSING = "missing video"  # as AnnotationFile calls it
# A file with more bad rows than this is another kind of file; a folder without more videos than this another folder.
MAX_UNUSABLE_SHARE = 0.1


@dataclass
class PublishedFile(AnnotationFile):
    """What a published file says. What is wrong in it are warnings, as long as it is no more than a tenth of it.

    Attributes:
        num_rows: in the file, unusable ones included.
    """

    num_rows: int = 0

    def judge(self) -> None:
        """Decides whether rows and videos that cannot be used are left out, or the whole file is unusable."""
        missing = sum(finding.kind == MISSING for finding in self.findings)
        many_videos = missing > MAX_UNUSABLE_SHARE * len(self.lines)
        many_rows = len(self.findings) - missing > MAX_UNUSABLE_SHARE * self.num_rows
        self.findings = [
            dataclasses.replace(
                finding, level="error" if (many_videos if finding.kind == MISSING else many_rows) else "warning"
            )
            for finding in self.findings
        ]

    def find_outside(self, durations: Mapping[str, float]) -> list[Finding]:
        """Entries beyond the ends of their videos; errors if they are more than a tenth."""
        findings = super().find_outside(durations)
        level: Literal["error", "warning"] = (
            "error" if len(findings) > MAX_UNUSABLE_SHARE * len(self.entries) else "warning"
        )
        return [dataclasses.replace(finding, level=level) for finding in findings]

    def describe_unused(self) -> list[str]:
        """What of the file is not used, one line for every kind of fault: how often, and where it comes first."""
        kinds: dict[str, list[Finding]] = {}
        for finding in self.findings:
            kinds.setdefault(finding.kind, []).append(finding)
        return [
            f"{self.path}: {len(found)} of {len(self.lines)} videos are missing and left out: {found[0]}"
            if kind == MISSING
            else f"{self.path}: {len(found)} of {self.num_rows} rows are left out ({kind}): {found[0]}"
            for kind, found in kinds.items()
        ]
