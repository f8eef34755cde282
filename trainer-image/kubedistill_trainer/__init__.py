"""The five stages that turn a teacher into a student: one image, one run file in, one result out."""
