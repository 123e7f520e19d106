"""Generation in layers: ``engine`` (captured graphs), ``tokens`` (ids), ``stream`` (text parts with statistics)."""
