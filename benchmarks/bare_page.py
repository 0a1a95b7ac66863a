"""What Streamlit and plotly need by themselves: a page with as many small charts as its address asks for."""

import plotly.graph_objects as go
import streamlit as st

st.header("Bare")
for number in range(int(st.query_params.get("charts", 0))):
    st.plotly_chart(go.Figure(go.Heatmap(z=[[1, 2], [3, 4]])), key=str(number))
