"""What is done with settings beside holding them: refusing values, reading stored ones, those of evaluations."""
