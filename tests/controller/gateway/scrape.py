"""What a scrape of /metrics holds."""

from prometheus_client.parser import text_string_to_metric_families


def samples(text: bytes) -> dict[tuple[str, str, str], float]:
    """Values by name without the prefix, task and variant; buckets left out."""
    return {
        (
            sample.name.removeprefix("trt_mtp_gateway_"),
            sample.labels.get("task", ""),
            sample.labels.get("variant", ""),
        ): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if "le" not in sample.labels
    }
