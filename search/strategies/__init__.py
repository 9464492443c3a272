"""Ask/tell search strategies; `conf/strategy/NAME.yaml` names the class. CMA is nevergrad's."""
